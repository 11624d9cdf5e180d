"""Chooses the training pictures of `neighbours.parquet`, and embeds rows as the run does.

A run in mode head sees the embeddings of the data set; a finetuned backbone has its own.
Shapes: M members chosen of a shard, N rows, D embedding.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation, ShardRecord
from pipeline.dataset.schema import embedding_matrix
from pipeline.page.pictures import small_picture
from train.config import TrainConfig
from train.data.images import ShardImages, crop_images
from train.metrics.predictions import Place
from train.model.detector import DetectorModel
from train.model.info import ModelInfo
from train.model.neighbours import PREVIEW_SIDE

_MOST = 2048  # of positives, and of negatives: 5 kB each with 1,280 features
_MOST_FINETUNED = 256  # each of them is embedded anew
_SHARE_SIMILAR = 0.75  # of the negatives; the others are spread evenly, for pictures like neither
_NUM_THREADS = 16  # they wait for storage, or decode
_PLACE = ("key", "tar_offset", "tar_size")
_READ = ("key", "source", "uri", "license", "label", "tar_offset", "tar_size", "embedding")


@dataclass(frozen=True)
class RunEmbedder:
    """Embeds rows of a data set as a run does. `images`, of the shards in order, are for that."""

    dataset: str
    shards: Sequence[ShardRecord]
    images: ShardImages
    detector: DetectorModel
    info: ModelInfo

    @classmethod
    def of(
        cls,
        detector: DetectorModel,
        info: ModelInfo,
        train_config: TrainConfig,
        dataset: str,
        generation: Generation,
    ) -> "RunEmbedder":
        images = ShardImages(
            dataset,
            generation.shards,
            train_config.cache_dir,
            cache_gb=train_config.cache_gb,
            generation=generation.number,
        )
        return cls(dataset, generation.shards, images, detector, info)

    def embed(self, number: int, rows: pa.Table) -> NDArray[np.float32] | None:
        """embedding_ND of some rows of the sidecar of a shard; None where they have none."""
        if self.info.mode == "head":
            return None if rows["embedding"].null_count else embedding_matrix(rows)
        pixels_BCHW = crop_images(self.images, number, rows, self.info.preprocessing)
        encoder = self.detector.encoder
        with torch.inference_mode():
            embedding_BD: Tensor = encoder(pixels_BCHW.to(encoder.mean.device))
        return embedding_BD.float().cpu().numpy()

    def embed_places(self, places: Sequence[Place]) -> NDArray[np.float32] | None:
        """embedding_ND of pictures, by key and path of the shard; None if one of them has none."""
        found: dict[str, NDArray[np.float32]] = {}
        for number, shard in enumerate(self.shards):
            keys = [key for key, path in places if path == shard.path]
            if not keys:
                continue
            rows = Dataset(self.dataset).read_sidecar(shard, _READ)
            rows = rows.filter(pc.is_in(rows["key"], pa.array(keys)))
            embedding_ND = self.embed(number, rows)
            if embedding_ND is None:
                return None
            found |= zip(rows["key"].to_pylist(), embedding_ND, strict=True)
        return np.stack([found[key] for key, _ in places]) if places else None


def choose_neighbours(embedder: RunEmbedder) -> pa.Table | None:
    """Rows of `neighbours.parquet`; None if the data set has no embeddings.

    Raises BadShard for a picture that cannot be read.
    """
    info = embedder.info
    splits = ("train",) if info.folds == 1 else ("train", "val")
    skipped = {path for segment in info.segments[-1:] for path in segment.skipped}
    numbers = [
        number
        for number, shard in enumerate(embedder.shards)
        if shard.split in splits and shard.path not in skipped
    ]
    most = _MOST if info.mode == "head" else _MOST_FINETUNED
    chosen = _choose(embedder, numbers, most)
    tables = []
    for number in numbers:
        if not len(chosen[number]):
            continue
        shard = embedder.shards[number]
        rows = Dataset(embedder.dataset).read_sidecar(shard, _READ).take(chosen[number])
        embedding_MD = embedder.embed(number, rows)
        if embedding_MD is None:
            return None
        previews = _previews(embedder.dataset, shard, rows)
        tables.append(_describe(rows, embedding_MD, previews))
    return pa.concat_tables(tables).combine_chunks() if tables else None


def _choose(
    embedder: RunEmbedder, numbers: Sequence[int], most: int
) -> dict[int, NDArray[np.int64]]:
    """Rows of each shard: at most so many positives and negatives in all."""
    dataset = Dataset(embedder.dataset)
    place_N2, similarity_N, label_N = [], [], []
    for number in numbers:
        column = dataset.read_sidecar(embedder.shards[number], ("similarity",))["similarity"]
        similarity_N.append(column.fill_null(-1.0).to_numpy())
        place_N2.append(np.stack([np.full(len(column), number), np.arange(len(column))], axis=1))
        label_N.append(np.full(len(column), bool(embedder.shards[number].label)))
    if not numbers:
        return {}
    places, is_positive_N = np.concatenate(place_N2), np.concatenate(label_N)
    positives, negatives = np.flatnonzero(is_positive_N), np.flatnonzero(~is_positive_N)
    order = negatives[np.argsort(-np.concatenate(similarity_N)[negatives], kind="stable")]
    num_similar = round(_SHARE_SIMILAR * most)
    members = np.concatenate(
        [
            _spread(positives, most),
            order[:num_similar],
            _spread(order[num_similar:], most - num_similar),
        ]
    )
    return {number: np.sort(places[members][places[members, 0] == number, 1]) for number in numbers}


def _spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of them, evenly."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _previews(dataset: str, shard: ShardRecord, rows: pa.Table) -> list[bytes]:
    def preview(row: Mapping[str, Any]) -> bytes:
        return small_picture(dataset, {**row, "shard": shard.path}, PREVIEW_SIDE)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(preview, rows.select(_PLACE).to_pylist()))


def _describe(rows: pa.Table, embedding_MD: NDArray[np.float32], previews: list[bytes]) -> pa.Table:
    flat = pa.array(embedding_MD.astype(np.float16).ravel())
    columns = {name: rows[name] for name in ("key", "source", "uri", "license", "label")}
    return pa.table(
        {
            **columns,
            "embedding": pa.FixedSizeListArray.from_arrays(flat, embedding_MD.shape[1]),
            "preview": pa.array(previews, pa.binary()),
        }
    )
