"""Images of a data set read one at a time out of its tars.

Shapes: B batch, C H W image.
"""

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from pipeline import storage
from pipeline.commits import ShardRecord
from pipeline.encoders import Preprocessing, crop_pixels

_MAX_OPEN_SHARDS = 128  # a process; each costs a file descriptor


class ShardImages:
    """Encoded images by range. A remote shard is copied to `cache_dir` when first needed."""

    def __init__(
        self, root: str, shards: Sequence[ShardRecord], cache_dir: str | None = None
    ) -> None:
        self._uris = [storage.join(root, shard.path) for shard in shards]
        self._cache_dir = cache_folder(cache_dir)
        self._maps: dict[int, mmap.mmap] = {}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        mapped = self._maps.get(shard)
        if mapped is None:
            if len(self._maps) >= _MAX_OPEN_SHARDS:
                # Closed by whichever thread is the last to hold it.
                self._maps.pop(next(iter(tuple(self._maps))), None)
            with storage.fetch(self._uris[shard], self._cache_dir).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[shard] = mapped
        return mapped[offset : offset + size]


def cache_folder(cache_dir: str | None) -> Path:
    """Where copies of remote shards, and embedded views, are kept."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache_dir or f"{cache_home}/infineg").expanduser()


def crop_images(
    images: ShardImages, shard: int, rows: pa.Table, preprocessing: Preprocessing
) -> Tensor:
    """pixels_BCHW uint8 of sidecar rows, cropped without any chance."""
    encoded = [
        images.read(shard, offset, size)
        for offset, size in zip(
            rows["tar_offset"].to_pylist(), rows["tar_size"].to_pylist(), strict=True
        )
    ]
    # Threads suffice: decoder and resampler let go of the interpreter.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.stack(list(pool.map(lambda image: crop_pixels(image, preprocessing), encoded)))
