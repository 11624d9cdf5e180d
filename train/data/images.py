"""Random access to single images in the tars of a data set.

Shapes: B batch, C H W image.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import storage
from pipeline.dataset.local_copies import tar_copy
from pipeline.dataset.metadata import ShardRecord
from pipeline.encoders.preprocessing import Preprocessing, crop_decoded, decode_rgb
from pipeline.errors import BadShard

_MAX_OPEN_SHARDS = 128  # local ones, per process; each costs a file descriptor
_GB = 10**9


class ShardImages:
    """Encoded images by byte range; thread-safe.

    A remote shard is copied to a bounded local cache when first needed, and its sha256 checked; of
    a local shard the size is checked. `generation` only appears in messages.
    """

    def __init__(
        self,
        root: str,
        shards: Sequence[ShardRecord],
        cache_dir: str | None = None,
        *,
        cache_gb: float | None = None,
        generation: int | None = None,
    ) -> None:
        self._uris = [storage.join(root, shard.path) for shard in shards]
        self._shards = shards
        self._generation = generation
        self._is_local = storage.local_path(root) is not None
        self._cache = open_cache(cache_dir, cache_gb)
        self._maps: dict[int, mmap.mmap] = {}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Raises BadShard if the shard is missing or differs from its record."""
        image = self._map(shard)[offset : offset + size]
        if len(image) != size:
            raise self.bad(shard, f"no {size:,} bytes at offset {offset:,}")
        return image

    def decode(
        self, shard: int, image: bytes, *, offset: int, key: Callable[[], str]
    ) -> NDArray[np.uint8]:
        """RGB pixels HWC. Raises BadShard that names the image if it cannot be decoded."""
        try:
            return decode_rgb(image)
        except ValueError as error:  # from simplejpeg
            place = f"image {key()} at offset {offset:,}, {len(image):,} bytes"
            raise self.bad(shard, f"{place}, cannot be decoded ({error})") from None

    def bad(self, shard: int, problem: str) -> BadShard:
        record = self._shards[shard]
        recorded = f"{record.size_bytes:,} bytes, sha256 {record.sha256}"
        return bad_shard(self._uris[shard], problem, recorded, self._generation)

    def _map(self, shard: int) -> mmap.mmap:
        if not self._is_local:
            record = self._shards[shard]
            return self._cache.map(
                tar_copy(record), record.size_bytes, lambda file: self._fetch(shard, file)
            )
        found = self._maps.get(shard)
        if found is None:
            # Not closed, since another thread may be reading: the last reference closes it.
            for oldest in list(self._maps)[: len(self._maps) - _MAX_OPEN_SHARDS + 1]:
                self._maps.pop(oldest, None)
            found = self._maps[shard] = self._map_local(shard)
        return found

    def _map_local(self, shard: int) -> mmap.mmap:
        path = storage.local_path(self._uris[shard])
        assert path is not None
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise self.bad(shard, "it is missing") from None
        with file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes != self._shards[shard].size_bytes:
                raise self.bad(shard, f"it has {size_bytes:,} bytes")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _fetch(self, shard: int, file: IO[bytes]) -> None:
        try:
            sha256, size_bytes = storage.fetch(self._uris[shard], file)
        except FileNotFoundError:
            raise self.bad(shard, "it is missing") from None
        if sha256 != self._shards[shard].sha256:
            raise self.bad(shard, f"it has {size_bytes:,} bytes, sha256 {sha256}")


def bad_shard(uri: str, problem: str, recorded: str, generation: int | None) -> BadShard:
    where = "" if generation is None else f" of generation {generation}"
    return BadShard(
        f"shard {uri}{where}: {problem}; its record says {recorded}. Restore it from a copy "
        "(`infineg verify` lists all damage), or train without it: train.on_bad_shard: skip"
    )


def open_cache(cache_dir: str | None, cache_gb: float | None) -> storage.LocalCache:
    """Local copies of remote files, at most cache_gb of them; None is unlimited."""
    max_bytes = None if cache_gb is None else round(cache_gb * _GB)
    return storage.LocalCache(storage.cache_folder(cache_dir) / "copies", max_bytes)


def crop_images(
    images: ShardImages, shard: int, rows: pa.Table, preprocessing: Preprocessing
) -> Tensor:
    """pixels_BCHW uint8 of sidecar rows, cropped deterministically. Raises BadShard."""
    columns = (rows[name].to_pylist() for name in ("key", "tar_offset", "tar_size"))

    def crop(row: tuple[str, int, int]) -> Tensor:
        key, offset, size = row
        image = images.read(shard, offset, size)
        pixels_HWC = images.decode(shard, image, offset=offset, key=lambda: key)
        return torch.from_numpy(crop_decoded(pixels_HWC, preprocessing))

    # Threads suffice: decoder and resampler release the GIL.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.stack(list(pool.map(crop, zip(*columns, strict=True))))
