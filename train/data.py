"""A generation of a data set -> batches to train on, and batches to evaluate on.

Shapes: B batch, C H W image, D embedding, K targets, N rows of the train split.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pipeline import manifest
from pipeline.encoders import Preprocessing, crop_pixels, decode_rgb
from pipeline.errors import InfinegError
from pipeline.records import Generation, ShardRecord, Split
from train.augment import Strength, augment
from train.images import ShardImages, crop_images
from train.order import BatchOrder, Rows


class Batch(NamedTuple):
    """inputs: embedding_BD float32 or pixels_BCHW uint8. rows_B number the rows of `TrainRows`."""

    inputs: Tensor
    targets_BK: Tensor  # float32, 1 where the sample shows the target
    inverse_probability_B: Tensor  # float32, 1 / inclusion_probability
    rows_B: Tensor


@dataclass(frozen=True)
class TrainRows:
    """The train split without its images and embeddings: about 100 bytes a row."""

    targets: tuple[str, ...]
    shards: tuple[ShardRecord, ...]
    starts: NDArray[np.int64]  # first row of each shard, and the number of rows
    keys: pa.ChunkedArray
    tar_offset_N: NDArray[np.int64]
    tar_size_N: NDArray[np.int64]
    inverse_probability_N: NDArray[np.float32]

    @property
    def positives(self) -> list[range]:
        """Rows of each shard that shows a target."""
        return [rows for shard, rows in self._ranges() if shard.label]

    @property
    def negatives(self) -> list[range]:
        return [rows for shard, rows in self._ranges() if not shard.label]

    def shard_of(self, rows: Rows) -> NDArray[np.int64]:
        return np.searchsorted(self.starts, rows, side="right") - 1

    def targets_of(self, rows: Rows) -> Tensor:
        """targets_BK float32."""
        labels = [self.shards[i].label for i in self.shard_of(rows)]
        return torch.tensor([[label == name for name in self.targets] for label in labels]).float()

    def _ranges(self) -> Iterator[tuple[ShardRecord, range]]:
        bounds = zip(self.shards, self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        return ((shard, range(start, stop)) for shard, start, stop in bounds)


def read_train_rows(root: str, generation: Generation, targets: Sequence[str]) -> TrainRows:
    """Reads the sidecars of the train split. Raises InfinegError where a label is missing."""
    shards = tuple(shard for shard in generation.shards if shard.split == "train")
    columns = ("key", "tar_offset", "tar_size", "inclusion_probability")
    tables = [manifest.read_sidecar(root, shard, columns) for shard in shards]
    for wanted, found in (("positives", [s for s in shards if s.label]),
                          ("negatives", [s for s in shards if not s.label])):  # fmt: skip
        if not found:
            raise InfinegError(
                f"{root}: generation {generation.number} has no {wanted} in its train split; "
                "add a source and run `infineg build`"
            )
    table = pa.concat_tables(tables)
    return TrainRows(
        targets=tuple(targets),
        shards=shards,
        starts=np.cumsum([0, *(each.num_rows for each in tables)]),
        keys=table["key"],
        tar_offset_N=table["tar_offset"].to_numpy(),
        tar_size_N=table["tar_size"].to_numpy(),
        inverse_probability_N=(1 / table["inclusion_probability"].to_numpy()).astype(np.float32),
    )


class CachedEmbeddings:
    """The train split's embeddings, float16 in memory: 2.5 GB for a million of 1,280 numbers."""

    def __init__(self, root: str, rows: TrainRows) -> None:
        tables = (manifest.read_sidecar(root, shard, ("embedding",)) for shard in rows.shards)
        self.embedding_ND = np.concatenate([_embeddings_of(table) for table in tables])

    def __call__(self, rows_B: Rows, positions_B: Rows) -> Tensor:  # noqa: ARG002 (no chance here)
        return torch.from_numpy(self.embedding_ND[rows_B]).float()


class AugmentedImages:
    """Decoded and augmented images; what chance does to one depends on (seed, position) alone."""

    def __init__(
        self,
        root: str,
        rows: TrainRows,
        *,
        preprocessing: Preprocessing,
        strength: Strength,
        seed: int,
        cache_dir: str | None = None,
    ) -> None:
        self._rows = rows
        self._images = ShardImages(root, rows.shards, cache_dir)
        self._preprocessing = preprocessing
        self._strength = strength
        self._seed = seed

    def __call__(self, rows_B: Rows, positions_B: Rows) -> Tensor:
        size = self._preprocessing.image_size
        # Channels last, as the decoder gives them and convolutions like them.
        pixels_BHWC = torch.empty((len(rows_B), size, size, 3), dtype=torch.uint8)
        if get_worker_info() is not None:
            pixels_BHWC.share_memory_()  # type: ignore[no-untyped-call]  # filled in place: the parent gets it without a copy
        pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2)
        for i, (row, position) in enumerate(zip(rows_B, positions_B, strict=True)):
            pixels_BCHW[i] = self._read(int(row), int(position))
        return pixels_BCHW

    def _read(self, row: int, position: int) -> Tensor:
        offset, size = self._rows.tar_offset_N[row], self._rows.tar_size_N[row]
        shard = int(self._rows.shard_of(np.asarray([row]))[0])
        image = self._images.read(shard, int(offset), int(size))
        if self._strength == "off":
            return crop_pixels(image, self._preprocessing)
        pixels_CHW = torch.from_numpy(decode_rgb(image)).permute(2, 0, 1)
        rng = np.random.default_rng((self._seed, position))
        side = self._preprocessing.image_size
        return augment(pixels_CHW, size=side, strength=self._strength, rng=rng)


class Batches(Dataset[Batch]):
    """Item t is this rank's slice of batch t, whoever asks for it and whenever."""

    def __init__(
        self, rows: TrainRows, order: BatchOrder, read_inputs: Callable[[Rows, Rows], Tensor]
    ) -> None:
        self._rows = rows
        self._order = order
        self._read_inputs = read_inputs

    def __getitem__(self, step: int) -> Batch:
        rows_B, positions_B = self._order.batch(step)
        return Batch(
            inputs=self._read_inputs(rows_B, positions_B),
            targets_BK=self._rows.targets_of(rows_B),
            inverse_probability_B=torch.from_numpy(self._rows.inverse_probability_N[rows_B]),
            rows_B=torch.from_numpy(rows_B),
        )


def stream_batches(batches: Batches, steps: range, *, workers: int, pin: bool) -> Iterator[Batch]:
    """The batches of `steps` in order, read by `workers` processes, or here where that is 0."""
    if workers == 0:
        return (batches[step] for step in steps)
    # A whole batch is one item: no collation, and one message a batch between processes.
    loader: DataLoader[Any] = DataLoader(
        batches, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin
    )
    return iter(loader)


def read_eval_batches(
    root: str,
    generation: Generation,
    *,
    splits: Sequence[Split],
    mode: Literal["head", "finetune"],
    preprocessing: Preprocessing | None,
    batch_size: int = 256,
    cache_dir: str | None = None,
) -> Iterator[tuple[pa.Table, Tensor]]:
    """Every row of the splits once, shard after shard: (rows, inputs), at most batch_size of each.

    rows: the sidecar's columns without `embedding`, in tar order. inputs: for `head` the cached
    embedding_BD float32 (preprocessing may be None); for `finetune` pixels_BCHW uint8, cropped
    by `preprocessing` without any chance. Nothing is shuffled, weighted or dropped.
    """
    shards = [shard for shard in generation.shards if shard.split in splits]
    images = ShardImages(root, shards, cache_dir)
    for number, shard in enumerate(shards):
        sidecar = manifest.read_sidecar(root, shard)
        for start in range(0, sidecar.num_rows, batch_size):
            rows = sidecar.slice(start, batch_size)
            about = rows.drop_columns(["embedding"])
            if mode == "head":
                yield about, torch.from_numpy(_embeddings_of(rows).astype(np.float32))
            else:
                assert preprocessing is not None
                yield about, crop_images(images, number, rows, preprocessing)


def _embeddings_of(rows: pa.Table) -> NDArray[np.float16]:
    """embedding_ND float16 of a sidecar. Raises InfinegError where a row has none."""
    column = rows["embedding"].combine_chunks()
    if column.null_count:
        raise InfinegError(
            f"{column.null_count} of {rows.num_rows} rows have no embedding; train.mode: finetune "
            "needs none"
        )
    embeddings: NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=False)
    return embeddings.reshape(rows.num_rows, -1)
