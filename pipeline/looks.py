"""Which pictures look the same: an index of 64-bit perceptual hashes.

Shapes: N hashes.
"""

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Of 64 bits. A picture that is encoded again or scaled differs from itself in 0 to 3.
_MAX_DISTANCE = 3
# A flat picture or a plain gradient has a hash of hardly anything but zeros or ones, as has any
# other: it tells nothing.
_MIN_BITS = 8


class LookIndex:
    """Pictures by their looks."""

    def __init__(self) -> None:
        # Four 16-bit words: of two hashes that differ in at most 3 bits, one word is the same.
        self._index = faiss.IndexBinaryMultiHash(64, 4, 16)

    def add(self, look_N: NDArray[np.uint64]) -> None:
        telling_N = look_N[_tells(look_N)]
        if len(telling_N):
            self._index.add(_bytes_of(telling_N))

    def resembles(self, look_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether a picture of the index looks the same."""
        found_N = np.zeros(len(look_N), bool)
        asked = np.flatnonzero(_tells(look_N))
        if len(asked) and self._index.ntotal:
            # FAISS finds what is nearer than the radius.
            looks = _bytes_of(look_N[asked])
            limits, _, _ = self._index.range_search(looks, _MAX_DISTANCE + 1)
            found_N[asked] = np.diff(limits.astype(np.int64)) > 0
        return found_N


def looks_of(rows: pa.Table) -> NDArray[np.uint64]:
    """perceptual_hash_N; 0, which looks like nothing, where a row has none."""
    return np.asarray(pc.fill_null(rows["perceptual_hash"], 0).to_numpy(), np.uint64)


def _tells(look_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
    num_bits_N = np.bitwise_count(look_N)
    return np.asarray((num_bits_N >= _MIN_BITS) & (num_bits_N <= 64 - _MIN_BITS))


def _bytes_of(look_N: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(look_N).view(np.uint8).reshape(-1, 8)
