"""Embeddings of augmented crops of the positives ("views"), made once and kept.

A few hundred positives are drawn hundreds of times each; other crops, flips and colours give the
head more to learn from. Negatives have no views: there are more of them than a run can use. The
view of a draw depends only on (seed, position), and the label and weight are the sample's, so that
order and importance weights are independent of views.

One file per shard and view, `views/<shard>-<key>.npy` in the cache folder; the key is a hash of all
that it depends on: encoder, augmentation, seed, number of the view, and the shard's bytes.

Shapes: B batch, C H W image, D embedding, N rows, P positives, V views besides the original.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from more_itertools import chunked
from numpy.typing import NDArray
from torch import Tensor

from pipeline import storage
from pipeline.dataset.keys import sha256_hex
from pipeline.dataset.local_copies import view_copy
from pipeline.dataset.metadata import ShardRecord
from pipeline.encoders.networks import Encoder
from pipeline.telemetry.progress import Progress
from train.config import Strength
from train.data.augment import augment
from train.data.embeddings import MappedEmbeddings
from train.data.images import ShardImages
from train.data.rows import TrainRows
from train.distributed.world import World

_BATCH = 64  # images per forward pass


class ViewedEmbeddings:
    """The data set's embeddings; each draw of a positive takes one of its views."""

    def __init__(
        self,
        embedding_ND: NDArray[np.float16] | MappedEmbeddings,
        view_VPD: NDArray[np.float16],
        *,
        positives: Sequence[range],
        seed: int,
    ) -> None:
        self._embedding_ND = embedding_ND
        self._view_VPD = view_VPD
        self._seed = seed
        # Index of each row among the positives, -1 for negatives.
        self._place_N = np.full(len(embedding_ND), -1, np.int64)
        rows = np.concatenate([np.arange(each.start, each.stop) for each in positives])
        self._place_N[rows] = np.arange(len(rows))

    def read(self, rows_B: NDArray[np.int64], positions_B: NDArray[np.int64]) -> Tensor:
        """embedding_BD float32."""
        embedding_BD = self._embedding_ND[rows_B]
        place_B = self._place_N[rows_B]
        view_B = draw_views(positions_B, num_views=len(self._view_VPD) + 1, seed=self._seed)
        is_other_B = (place_B >= 0) & (view_B > 0)
        embedding_BD[is_other_B] = self._view_VPD[view_B[is_other_B] - 1, place_B[is_other_B]]
        return torch.from_numpy(embedding_BD).float()


def draw_views(positions_B: NDArray[np.int64], *, num_views: int, seed: int) -> NDArray[np.int64]:
    """The view of each draw, 0 for the original: splitmix64 (Steele et al. 2014) of the position.

    A hash, since one numpy generator per draw would take longer than a training step.
    """
    start = np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    z_B = (positions_B.astype(np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
    z_B = (z_B ^ (z_B >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z_B = (z_B ^ (z_B >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z_B ^ (z_B >> np.uint64(31))) % np.uint64(num_views)).astype(np.int64)


@dataclass(frozen=True)
class ViewMaker:
    """Makes and reads the views of a data set."""

    root: str
    encoder: Encoder  # on the world's device
    identity: str  # of the encoder
    strength: Strength
    seed: int
    cache_dir: str | None = None

    def read(self, rows: TrainRows, *, num_views: int, world: World) -> NDArray[np.float16]:
        """view_VPD of the positives in the order of their rows; makes missing views.

        The processes share the work. Without a shared cache, each makes what others made elsewhere.
        """
        numbers = [i for i, shard in enumerate(rows.shards) if shard.label]
        images = ShardImages(self.root, rows.shards, self.cache_dir, generation=rows.generation)
        wanted = [(view, number) for view in range(1, num_views) for number in numbers]
        self._make(rows, images, wanted[world.rank :: world.size])
        world.barrier()
        self._make(rows, images, wanted)
        by_view = [
            np.concatenate([np.load(self._path(rows.shards[number], view)) for number in numbers])
            for view in range(1, num_views)
        ]
        return np.stack(by_view)

    def _make(
        self, rows: TrainRows, images: ShardImages, wanted: Sequence[tuple[int, int]]
    ) -> None:
        missing = [
            (view, number)
            for view, number in wanted
            if not self._path(rows.shards[number], view).exists()
        ]
        total = sum(rows.shards[number].num_samples for _, number in missing)
        with Progress("views of positives", total=total, unit="images") as progress:
            for view, number in missing:
                parts = []
                for embedding_BD in self._embed(rows, images, number, view):
                    parts.append(embedding_BD)
                    progress.advance(len(embedding_BD))
                path = self._path(rows.shards[number], view)
                with storage.open_atomic(str(path)) as file:
                    np.save(file, np.concatenate(parts))

    def _embed(
        self, rows: TrainRows, images: ShardImages, number: int, view: int
    ) -> Iterator[NDArray[np.float16]]:
        """embedding_BD of one view of a shard's images, batch by batch."""
        shard, first = rows.shards[number], int(rows.starts[number])
        size = self.encoder.preprocessing.image_size
        device = self.encoder.mean.device

        def view_of(place: int) -> Tensor:
            offset, num_bytes = rows.tar_offset_N[first + place], rows.tar_size_N[first + place]
            image = images.read(number, int(offset), int(num_bytes))
            pixels_HWC = images.decode(
                number, image, offset=int(offset), key=lambda: rows.keys[first + place].as_py()
            )
            pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)
            rng = np.random.default_rng((self.seed, view, place, int(shard.sha256[:16], 16)))
            return augment(pixels_CHW, size=size, strength=self.strength, rng=rng)

        # Threads suffice: decoder and resampler release the GIL.
        with ThreadPoolExecutor(os.cpu_count()) as pool, torch.inference_mode():
            for places in chunked(range(shard.num_samples), _BATCH):
                pixels_BCHW = torch.stack(list(pool.map(view_of, places)))
                yield self.encoder(pixels_BCHW.to(device)).half().cpu().numpy()

    def _path(self, shard: ShardRecord, view: int) -> Path:
        parts = (self.identity, self.strength, str(self.seed), str(view), shard.sha256)
        key = sha256_hex("\n".join(parts).encode())[:32]
        return storage.cache_folder(self.cache_dir) / "views" / view_copy(shard, key)
