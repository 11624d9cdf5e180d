"""Batches of a generation, for training and for evaluation.

Shapes: B batch, C H W image, D embedding, K targets, N rows of the train split.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import tee
from typing import Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from pipeline.dataset.schema import Split
from pipeline.encoders.preprocessing import Preprocessing
from train.config import BadShardPolicy, LoaderKind, Strength
from train.data.augment import augment, crop_square
from train.data.bad_shards import RowImages
from train.data.corrections import LossTerms
from train.data.embeddings import MappedEmbeddings
from train.data.images import ShardImages, crop_images
from train.data.order import BatchOrder, Rows
from train.data.prefetch import prefetch
from train.data.rows import TrainRows, embeddings_of


class Batch(NamedTuple):
    """inputs: embedding_BD float32 or pixels_BCHW uint8. rows_B number the rows of `TrainRows`."""

    inputs: Tensor
    targets_BK: Tensor  # float32, 1 where the sample shows the target
    importance_B: Tensor  # see LossTerms
    offset_B: Tensor  # see LossTerms
    fold_B: Tensor  # see TrainRows
    rows_B: Tensor


class CachedEmbeddings:
    """The embeddings of the train split, float16: an array, or memory-mapped files."""

    def __init__(self, embedding_ND: NDArray[np.float16] | MappedEmbeddings) -> None:
        self._embedding_ND = embedding_ND

    def read(self, rows_B: Rows, positions_B: Rows) -> Tensor:  # noqa: ARG002 (deterministic)
        """embedding_BD float32."""
        return torch.from_numpy(self._embedding_ND[rows_B]).float()


class AugmentedImages:
    """Decoded and augmented images. Augmentation depends only on the image, seed and position."""

    def __init__(
        self,
        root: str,
        rows: TrainRows,
        *,
        preprocessing: Preprocessing,
        strength: Strength,
        seed: int,
        cache_dir: str | None = None,
        cache_gb: float | None = None,
        on_bad_shard: BadShardPolicy = "stop",
    ) -> None:
        self.image_size = preprocessing.image_size
        images = ShardImages(
            root, rows.shards, cache_dir, cache_gb=cache_gb, generation=rows.generation
        )
        self._images = RowImages(rows, images, on_bad_shard)
        self._preprocessing = preprocessing
        self._strength = strength
        self._seed = seed

    def read(self, rows_B: Rows, positions_B: Rows) -> Tensor:
        """pixels_BCHW uint8, channels last: decoders return that, and convolutions prefer it."""
        size = self.image_size
        pixels_BHWC = torch.empty((len(rows_B), size, size, 3), dtype=torch.uint8)
        self.fill((rows_B, positions_B), pixels_BHWC)
        return pixels_BHWC.permute(0, 3, 1, 2)

    def fill(self, rows_and_positions: tuple[Rows, Rows], pixels_BHWC: Tensor) -> None:
        """As `read`, into existing memory."""
        rows_B, positions_B = rows_and_positions
        pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2)
        for i, (row, position) in enumerate(
            zip(rows_B.tolist(), positions_B.tolist(), strict=True)
        ):
            pixels_BCHW[i] = self.view(self.decoded(row), position)

    def encoded(self, rows_B: Rows) -> Iterator[bytes]:
        """The encoded JPEGs of the rows. Raises BadShard."""
        return map(self._images.read, rows_B.tolist())

    def decoded(self, row: int) -> Tensor:
        """pixels_CHW uint8. Raises BadShard."""
        return torch.from_numpy(self._images.decode(row)).permute(2, 0, 1)

    def view(self, pixels_CHW: Tensor, position: int) -> Tensor:
        """view_CHW uint8 of a decoded image at a position in the run, on the image's device."""
        if self._strength == "off":
            return crop_square(pixels_CHW, self._preprocessing)
        rng = np.random.default_rng((self._seed, position))
        return augment(pixels_CHW, size=self.image_size, strength=self._strength, rng=rng)


class Inputs(Protocol):
    """Reads the inputs of rows. positions_B, their positions in the run, seed all randomness."""

    def read(self, rows_B: Rows, positions_B: Rows) -> Tensor: ...


class Batches:
    """Batch t is this rank's slice of global batch t: random access by step."""

    def __init__(
        self, rows: TrainRows, terms: LossTerms, order: BatchOrder, inputs: Inputs
    ) -> None:
        self._rows = rows
        self._terms = terms
        self._order = order
        self._inputs = inputs

    def read(self, step: int) -> Batch:
        rows_B, positions_B = self._order.batch(step)
        return self._describe(rows_B, self._inputs.read(rows_B, positions_B))

    def stream(
        self, steps: range, *, workers: int, kind: LoaderKind = "process", pin: bool = False
    ) -> Iterator[Batch]:
        """The batches of `steps` in order; `workers`, if any, prefetch images.

        The inputs of a batch stay valid until the second next one is requested. `pin` page-locks
        their memory for copies to a GPU.
        """
        if not isinstance(self._inputs, AugmentedImages) or workers == 0 or not steps:
            yield from (self.read(step) for step in steps)
            return
        size = self._inputs.image_size
        # Kept twice, since the workers are ahead; the tee holds a few integers per sample.
        ordered, ahead = tee(self._order.batch(step) for step in steps)
        slots = prefetch(
            self._inputs.fill,
            ahead,
            slot_shape=(len(self._order.batch(steps.start)[0]), size, size, 3),
            workers=workers,
            kind=kind,
            pin=pin,
        )
        with closing(slots):
            for (rows_B, _), pixels_BHWC in zip(ordered, slots, strict=True):
                yield self._describe(rows_B, pixels_BHWC.permute(0, 3, 1, 2))

    def _describe(self, rows_B: Rows, inputs: Tensor) -> Batch:
        return Batch(
            inputs=inputs,
            targets_BK=self._rows.targets_of(rows_B),
            importance_B=torch.from_numpy(self._terms.importance_N[rows_B]),
            offset_B=torch.from_numpy(self._terms.offset_N[rows_B]),
            fold_B=torch.from_numpy(self._rows.fold_N[rows_B]),
            rows_B=torch.from_numpy(rows_B),
        )


def read_eval_batches(
    root: str,
    generation: Generation,
    *,
    splits: Sequence[Split],
    mode: Literal["head", "finetune"],
    preprocessing: Preprocessing | None,
    batch_size: int = 256,
    cache_dir: str | None = None,
    cache_gb: float | None = None,
) -> Iterator[tuple[pa.Table, Tensor]]:
    """(rows, inputs) of every row of the splits once, shard by shard, at most batch_size each.

    rows: the sidecar's columns without `embedding`, in tar order, and `shard`, the path of the tar.
    inputs: for `head` the cached
    embedding_BD float32 (preprocessing may be None); for `finetune` pixels_BCHW uint8, cropped
    by `preprocessing` deterministically. Nothing is shuffled, weighted or dropped.
    """
    shards = [shard for shard in generation.shards if shard.split in splits]
    images = ShardImages(root, shards, cache_dir, cache_gb=cache_gb, generation=generation.number)
    for number, shard in enumerate(shards):
        sidecar = Dataset(root).read_sidecar(shard)
        for start in range(0, sidecar.num_rows, batch_size):
            rows = sidecar.slice(start, batch_size)
            paths = pa.repeat(shard.path, len(rows))
            metadata = rows.drop_columns(["embedding"]).append_column("shard", paths)
            if mode == "head":
                yield metadata, torch.from_numpy(embeddings_of(rows).astype(np.float32))
            else:
                assert preprocessing is not None
                yield metadata, crop_images(images, number, rows, preprocessing)
