"""Deduplication: exact by content hash, near-duplicates by perceptual hash."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.schema import SPLITS, RejectReason, Split

COLUMNS = ("content_hash", "perceptual_hash", "split")
# Of 64 bits. An image that is encoded again or scaled changes in 0 to 3.
_MAX_DISTANCE = 3
# The hash of a flat image or a plain gradient is nearly all zeros or ones, whatever it shows, and
# identifies nothing.
_MIN_BITS = 8
# The order in which a round's splits are decided: evaluation images must not depend on training.
_EVAL_SPLITS: tuple[Split, ...] = ("val", "test")


class NearDuplicateIndex:
    """Finds perceptual hashes that differ in a few bits."""

    def __init__(self) -> None:
        # Four 16-bit words: of two hashes that differ in at most 3 bits, one word is the same.
        self._index = faiss.IndexBinaryMultiHash(64, 4, 16)

    def add(self, hash_N: NDArray[np.uint64]) -> None:
        usable_N = hash_N[_is_usable(hash_N)]
        if len(usable_N):
            self._index.add(_bytes_of(usable_N))

    def resembles(self, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether the index has a near-duplicate."""
        found_N = np.zeros(len(hash_N), bool)
        asked = np.flatnonzero(_is_usable(hash_N))
        if len(asked) and self._index.ntotal:
            # FAISS finds hashes nearer than the radius.
            limits, _, _ = self._index.range_search(_bytes_of(hash_N[asked]), _MAX_DISTANCE + 1)
            found_N[asked] = np.diff(limits.astype(np.int64)) > 0
        return found_N


@dataclass
class _Side:
    """The images of one split."""

    # Sorted, so that the cost of a round does not depend on the images before it.
    content_hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    looks: NearDuplicateIndex = field(default_factory=NearDuplicateIndex)

    def add(self, content_hash_N: NDArray[np.uint64], hash_N: NDArray[np.uint64]) -> None:
        new_N = np.sort(content_hash_N)
        places_N = np.searchsorted(self.content_hashes, new_N)
        self.content_hashes = np.insert(self.content_hashes, places_N, new_N)
        self.looks.add(hash_N)

    def holds(self, content_hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        first_N, last_N = (
            np.searchsorted(self.content_hashes, content_hash_N, side) for side in ("left", "right")
        )
        return np.asarray(last_N > first_N)


class SeenImages:
    """All images in the shards of a data set, as hashes: little more than 16 bytes per image."""

    def __init__(self) -> None:
        self._sides: dict[Split, _Side] = {split: _Side() for split in SPLITS}

    def add(self, rows: pa.Table) -> None:
        """rows: `COLUMNS`, of images that a shard holds."""
        content_hash_N, hash_N, splits = _arrays(rows)
        for split, side in self._sides.items():
            here = pc.equal(splits, split).to_numpy()
            side.add(content_hash_N[here], hash_N[here])

    def admit(self, rows: pa.Table) -> Mapping[int, RejectReason]:
        """Adds a round's selected rows; returns the positions of those refused, with the reason.

        rows: `COLUMNS`, in the order of the source. The same rows after the same rounds give the
        same answer.
        """
        content_hash_N, hash_N, splits = _arrays(rows)
        refused: dict[int, RejectReason] = {}
        for split in (*_EVAL_SPLITS, "train"):
            here = np.flatnonzero(pc.equal(splits, split).to_numpy())
            reasons = self._refuse(split, content_hash_N[here], hash_N[here])
            refused |= {int(here[n]): reason for n, reason in reasons.items()}
            kept = np.delete(here, list(reasons))
            self._sides[split].add(content_hash_N[kept], hash_N[kept])
        return refused

    def _refuse(
        self, split: Split, content_hash_N: NDArray[np.uint64], hash_N: NDArray[np.uint64]
    ) -> dict[int, RejectReason]:
        is_repeated_N = np.ones(len(content_hash_N), bool)
        is_repeated_N[np.unique(content_hash_N, return_index=True)[1]] = False
        is_duplicate_N = is_repeated_N | self._sides[split].holds(content_hash_N)
        is_in_eval_N = np.zeros(len(content_hash_N), bool)
        for other, side in self._sides.items():
            if other == split:
                continue
            is_there_N = side.holds(content_hash_N) | side.looks.resembles(hash_N)
            if split == "train":
                is_in_eval_N |= is_there_N
            else:
                is_duplicate_N |= is_there_N
        return {int(n): RejectReason.DUPLICATE for n in np.flatnonzero(is_duplicate_N)} | {
            int(n): RejectReason.IN_EVAL_SET for n in np.flatnonzero(is_in_eval_N)
        }


def _arrays(rows: pa.Table) -> tuple[NDArray[np.uint64], NDArray[np.uint64], pa.ChunkedArray]:
    """content_hash_N (its last 64 bits), perceptual_hash_N, split."""
    return _last_64_bits(rows["content_hash"]), perceptual_hashes(rows), rows["split"]


def _last_64_bits(hex_digits: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Of hashes in lower-case hexadecimal, without making Python objects."""
    last = pc.cast(pc.utf8_slice_codeunits(hex_digits, -16), pa.binary()).cast(pa.binary(16))
    last = last.combine_chunks()
    ascii_N16 = np.frombuffer(last.buffers()[1], np.uint8).reshape(-1, 16)[last.offset :][
        : len(last)
    ]
    # "0" to "9" are 0x30 to 0x39, "a" to "f" 0x61 to 0x66.
    digit_N16 = (ascii_N16 & 0xF) + 9 * (ascii_N16 >> 6)
    byte_N8 = digit_N16[:, 0::2] << 4 | digit_N16[:, 1::2]
    return byte_N8.view(">u8").ravel().astype(np.uint64)


def perceptual_hashes(rows: pa.Table) -> NDArray[np.uint64]:
    """perceptual_hash_N; 0, which matches nothing, if a row has none."""
    return np.asarray(pc.fill_null(rows["perceptual_hash"], 0).to_numpy(), np.uint64)


def _is_usable(hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
    num_bits_N = np.bitwise_count(hash_N)
    return np.asarray((num_bits_N >= _MIN_BITS) & (num_bits_N <= 64 - _MIN_BITS))


def _bytes_of(hash_N: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(hash_N).view(np.uint8).reshape(-1, 8)
