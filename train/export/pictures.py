"""Pictures of a data set that an export is made or judged by.

Shapes: N pictures, C H W image.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset import Dataset
from pipeline.dataset.metadata import ShardRecord
from pipeline.errors import InfinegError
from train.data.images import ShardImages, crop_images
from train.model.info import ModelInfo

_NUM_OF_EACH = 64  # positives and hard negatives that ranges of activations are read from
_COLUMNS = ("key", "tar_offset", "tar_size")


def of_test(root: str, info: ModelInfo, *, at_most: int) -> NDArray[np.uint8]:
    """pixels_NCHW of evenly spread pictures of test."""
    shards = [each for each in _shards(root, info) if each.split == "test"]
    step = -(-sum(each.num_samples for each in shards) // at_most)
    return _read(root, info, shards, lambda rows: _every(rows, step))


def of_both_kinds(root: str, info: ModelInfo) -> NDArray[np.uint8]:
    """pixels_NCHW of training positives, evenly spread, and of the negatives most similar to them.

    Between these a detector decides.
    """
    of_train = [each for each in _shards(root, info) if each.split == "train"]
    positives = [each for each in of_train if each.label]
    negatives = [each for each in of_train if not each.label]
    step = -(-sum(each.num_samples for each in positives) // _NUM_OF_EACH)
    similarity_N = np.concatenate(
        [Dataset(root).read_sidecar(each, ("similarity",))["similarity"].to_numpy()
         for each in negatives]
    )  # fmt: skip
    cut = float(np.sort(np.nan_to_num(similarity_N, nan=-1.0))[::-1][:_NUM_OF_EACH][-1])
    return np.concatenate(
        [
            _read(root, info, positives, lambda rows: _every(rows, step)),
            _read(root, info, negatives, lambda rows: _at_least(rows, cut))[:_NUM_OF_EACH],
        ]
    )


def _every(rows: pa.Table, step: int) -> pa.Table:
    return rows.take(np.arange(0, len(rows), step))


def _at_least(rows: pa.Table, cut: float) -> pa.Table:
    return rows.filter(pc.greater_equal(rows["similarity"], cut))


def _shards(root: str, info: ModelInfo) -> Iterable[ShardRecord]:
    return Dataset(root).read_generation(info.generation).shards


def _read(
    root: str,
    info: ModelInfo,
    shards: list[ShardRecord],
    choose: Callable[[pa.Table], pa.Table],
) -> NDArray[np.uint8]:
    images = ShardImages(root, shards, generation=info.generation)
    pixels = []
    for number, shard in enumerate(shards):
        rows = choose(Dataset(root).read_sidecar(shard, (*_COLUMNS, "similarity")))
        if len(rows):
            pixels.append(crop_images(images, number, rows, info.preprocessing).numpy())
    if not pixels:
        raise InfinegError(f"{root}: generation {info.generation} has no such pictures")
    return np.concatenate(pixels)
