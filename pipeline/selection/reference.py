"""The reference bank: embeddings of the positives of the train split, and limits fitted on them.

Shapes: B batch, K reference rows, D embedding.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.dataset.dedup import NearDuplicateIndex, perceptual_hashes
from pipeline.dataset.keys import sha256_hex, unit_hash
from pipeline.dataset.metadata import ReferenceInfo, TakenDown
from pipeline.dataset.schema import embedding_matrix
from pipeline.dataset.taken_down import is_taken_down
from pipeline.errors import InfinegError

BANK_PATH = "reference.parquet"
_COLUMNS = ("content_hash", "perceptual_hash", "split", "embedding")
# More rows hardly change the mean of the nearest five, but cost time per candidate.
_MAX_ROWS = 4096
# Quantile of the positives' leave-one-out similarities; a candidate above it is suspected.
_CEILING_QUANTILE = 0.05
_MIN_POSITIVES = 5  # of similarities to the nearest of the others, the fewest for limits


@dataclass(frozen=True)
class KnownPositives:
    """All positives, of every split, by their bytes and by their perceptual hashes."""

    content_hashes: frozenset[str] = frozenset()
    near_duplicates: NearDuplicateIndex = field(default_factory=NearDuplicateIndex)


@dataclass(frozen=True)
class ReferenceBank:
    """embedding_KD float64 of float16 values, L2-normalised, with the content hashes of its rows.

    `positives` also has those of val and test, which are not in the bank: no similarity may depend
    on them.
    """

    embedding_KD: NDArray[np.float64]
    content_hashes: tuple[str, ...]
    positives: KnownPositives
    num_neighbors: int

    def similarity(
        self, embedding_BD: NDArray[np.float32], content_hashes: Sequence[str]
    ) -> NDArray[np.float32]:
        """similarity_B: the mean of the `num_neighbors` largest of K cosines.

        embedding_BD: also of float16 values. A row is not compared with its own entry, or every
        positive would have a similarity of 1. One neighbour favours near-duplicates; five is
        steadier on a noisy bank.
        """
        # Exact, and so the same on any machine, with any number of threads: a float16 is a multiple
        # of 2^-24, so that these sums of products, at most about 1, need 48 of a double's 53 bits.
        cosine_BK = embedding_BD.astype(np.float64) @ self.embedding_KD.T
        position = {content_hash: k for k, content_hash in enumerate(self.content_hashes)}
        for b, content_hash in enumerate(content_hashes):
            if content_hash in position:
                cosine_BK[b, position[content_hash]] = -1.0
        k = min(self.num_neighbors, len(self.content_hashes) - 1)
        nearest_BK = np.partition(cosine_BK, -k, axis=1)[:, -k:]
        # Sorted, so that the order of summation is fixed.
        return np.asarray(np.sort(nearest_BK, axis=1).mean(axis=1), np.float32)


def write_reference(
    root: str,
    positives: pa.Table,
    *,
    num_neighbors: int,
    draw: int = 0,
    files: Mapping[str, str] | None = None,
) -> ReferenceInfo:
    """Writes the reference bank of a data set and the limits fitted on it.

    positives: usable rows with `key` and `_COLUMNS`, in any order. draw, files: as in the info.
    Raises InfinegError if there are too few positives in the train split.
    """
    positives = _distinct(positives).select(_COLUMNS)
    bank_sha256 = _write_bank(root, positives)
    bank = _make_bank(positives, num_neighbors)
    if len(bank.content_hashes) < _MIN_POSITIVES:
        raise InfinegError(
            f"positives: {len(bank.content_hashes)} usable distinct images in the train split of "
            f"{positives.num_rows} in all, at least {_MIN_POSITIVES} are needed"
        )
    own = bank.similarity(bank.embedding_KD.astype(np.float32), bank.content_hashes)
    median, ceiling = (float(np.quantile(own, q)) for q in (0.5, _CEILING_QUANTILE))
    info = ReferenceInfo(
        fingerprint=sha256_hex("\n".join(sorted(bank.positives.content_hashes)).encode()),
        num_embeddings=len(bank.content_hashes),
        num_positives=positives.num_rows,
        median=median,
        ceiling=ceiling,
        # In units of the positives' own spread below their median. On photographs of cats, most
        # wild felids and dogs are above `near`, and most other animals are above `mid`.
        near=ceiling - 1.5 * (median - ceiling),
        mid=ceiling - 2.25 * (median - ceiling),
        bank_sha256=bank_sha256,
        draw=draw,
        files=dict(files or {}),
    )
    Dataset(root).write_reference(info)
    return info


def _write_bank(root: str, positives: pa.Table) -> str:
    """Returns its sha256."""
    buffer = io.BytesIO()
    pq.write_table(positives, buffer, compression="zstd")
    return storage.write_atomic(storage.join(root, BANK_PATH), buffer.getvalue())


def drop_positives(dataset: Dataset, taken_down: TakenDown, *, num_neighbors: int) -> int:
    """Makes the bank anew without positives that are taken down; returns their number.

    The limits are fitted on the others. If too few are left, or the positives have changed anyway,
    the next build makes the bank anew. It stays of the same draw and of the same files.
    """
    if not storage.exists(dataset.uri(BANK_PATH)):
        return 0
    info = dataset.read_reference()
    rows = dataset.read_table(BANK_PATH, sha256=_bank_sha256(info))
    refused = is_taken_down(rows, taken_down)
    number = int(pc.sum(refused).as_py() or 0)
    if not number and info is not None and info.fingerprint:
        return 0
    if info is not None:  # an interrupted run ends here, or the next build does
        info = info.model_copy(update={"fingerprint": "", "bank_sha256": ""})
        dataset.write_reference(info)
    rows = rows.filter(pc.invert(refused))
    if "perceptual_hash" not in rows.column_names:  # older data sets lack it
        rows = rows.append_column("perceptual_hash", pa.nulls(rows.num_rows, pa.uint64()))
    rows = rows.append_column("key", rows["content_hash"])  # each is there once
    is_enough = pc.sum(pc.equal(rows["split"], "train")).as_py() >= _MIN_POSITIVES
    if is_enough and not (info and info.is_outdated):
        draw, files = (info.draw, info.files) if info else (0, {})
        write_reference(dataset.root, rows, num_neighbors=num_neighbors, draw=draw, files=files)
        return number
    bank_sha256 = _write_bank(dataset.root, rows.select(_COLUMNS))
    if info is not None:
        dataset.write_reference(info.model_copy(update={"bank_sha256": bank_sha256}))
    return number


def read_bank(dataset: Dataset, *, num_neighbors: int) -> ReferenceBank:
    """The bank of a data set. Raises InfinegError if it is not what reference.json says."""
    sha256 = _bank_sha256(dataset.read_reference())
    return _make_bank(dataset.read_table(BANK_PATH, sha256=sha256), num_neighbors)


def _bank_sha256(info: ReferenceInfo | None) -> str | None:
    """None if unknown: a build that was killed may have written the next bank, not its record."""
    return info.bank_sha256 if info is not None and info.is_current else None


def _distinct(positives: pa.Table) -> pa.Table:
    """One row per content hash, sorted by it: the bank does not depend on the order of reading."""
    positives = positives.sort_by([("content_hash", "ascending"), ("key", "ascending")])
    hashes = positives["content_hash"].to_pylist()
    first = [i == 0 or hashes[i] != hashes[i - 1] for i in range(len(hashes))]
    return positives.filter(pa.array(first, pa.bool_()))


def _make_bank(positives: pa.Table, num_neighbors: int) -> ReferenceBank:
    train = positives.filter(pc.equal(positives["split"], "train"))
    order = sorted(
        range(train.num_rows), key=lambda i: unit_hash("bank", train["content_hash"][i].as_py())
    )
    train = train.take(pa.array(order[:_MAX_ROWS], pa.int64()))  # typed: there may be none
    near_duplicates = NearDuplicateIndex()
    if "perceptual_hash" in positives.column_names:  # older data sets lack it
        near_duplicates.add(perceptual_hashes(positives))
    return ReferenceBank(
        embedding_KD=embedding_matrix(train).astype(np.float64),
        content_hashes=tuple(train["content_hash"].to_pylist()),
        positives=KnownPositives(frozenset(positives["content_hash"].to_pylist()), near_duplicates),
        num_neighbors=num_neighbors,
    )
