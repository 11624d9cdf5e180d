"""Rows of a generation's train split, numbered over its shards.

Shapes: B batch, D embedding, K targets, N rows, S shards.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import cached_property
from io import BytesIO
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.dataset.keys import unit_hash
from pipeline.dataset.metadata import ShardRecord
from pipeline.errors import BadShard, InfinegError
from train.data.images import bad_shard

_NUM_THREADS = 16  # they wait for storage; reading itself is quick
_COLUMNS = [
    "key", "tar_offset", "tar_size", "inclusion_probability", "similarity", "stratum",
    "group",
]  # fmt: skip


@dataclass(frozen=True)
class TrainRows:
    """The train split without its images and embeddings: about 100 bytes per row."""

    generation: int
    targets: tuple[str, ...]
    shards: tuple[ShardRecord, ...]
    starts: NDArray[np.int64]  # first row of each shard, then the number of rows
    keys: pa.ChunkedArray
    tar_offset_N: NDArray[np.int64]
    tar_size_N: NDArray[np.int64]
    inverse_probability_N: NDArray[np.float32]
    similarity_N: NDArray[np.float32]  # nan where unknown
    is_photo_N: NDArray[np.bool_]  # not generated
    fold_N: NDArray[np.int8]  # the head of that number is not trained on the row

    @property
    def positives(self) -> list[range]:
        """The rows of each shard of positives."""
        return [rows for shard, rows in self._ranges() if shard.label]

    @property
    def negatives(self) -> list[range]:
        return [rows for shard, rows in self._ranges() if not shard.label]

    @property
    def label_N(self) -> NDArray[np.str_]:
        return np.repeat([shard.label for shard in self.shards], np.diff(self.starts))

    def shard_of(self, rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.starts, rows_B, side="right") - 1

    def targets_of(self, rows_B: NDArray[np.int64]) -> Tensor:
        """targets_BK float32."""
        return self._targets_SK[torch.from_numpy(self.shard_of(rows_B))]

    @cached_property
    def _targets_SK(self) -> Tensor:
        is_target = [[shard.label == name for name in self.targets] for shard in self.shards]
        return torch.tensor(is_target).float()

    def where(self, is_kept_N: NDArray[np.bool_]) -> "TrainRows":
        """The rows that are kept, renumbered; shards may become empty."""
        columns = [each.name for each in fields(self) if each.name.endswith("_N")]
        return replace(
            self,
            starts=np.concatenate([[0], np.cumsum(is_kept_N)])[self.starts],
            keys=self.keys.filter(pa.array(is_kept_N)),
            **{name: getattr(self, name)[is_kept_N] for name in columns},
        )

    def _ranges(self) -> Iterator[tuple[ShardRecord, range]]:
        bounds = zip(self.shards, self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        return ((shard, range(start, stop)) for shard, start, stop in bounds)


def read_rows_of_shards(
    root: str,
    shards: Sequence[ShardRecord],
    generation: int,
    *,
    verifies: bool = False,
    embedding_dim: int | None = None,
) -> list[pa.Table | BadShard]:
    """The columns that training needs, one table per shard, or what is wrong with its sidecar.

    verifies: check the sha256, which reads the whole file. Raises InfinegError if embedding_dim is
    given and differs.
    """

    def read(shard: ShardRecord) -> pa.Table | BadShard:
        uri = storage.join(root, shard.sidecar_path)
        try:
            return _read_rows(uri, shard, verifies, embedding_dim)
        except (FileNotFoundError, pa.ArrowInvalid, OSError, KeyError) as error:
            problem = "it is missing" if isinstance(error, FileNotFoundError) else f"{error}"
            recorded = f"{shard.num_samples:,} rows, sha256 {shard.sidecar_sha256}"
            return bad_shard(uri, problem.partition("\n")[0], recorded, generation)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(read, shards))


def _read_rows(uri: str, shard: ShardRecord, verifies: bool, embedding_dim: int | None) -> pa.Table:
    with ExitStack() as stack:
        if verifies:
            content = storage.read_bytes(uri)
            if hashlib.sha256(content).hexdigest() != shard.sidecar_sha256:
                raise pa.ArrowInvalid(f"it has {len(content):,} bytes of another sha256")
            file: IO[bytes] = BytesIO(content)
        else:
            file = stack.enter_context(storage.open_read(uri))
        parquet = pq.ParquetFile(file)
        if embedding_dim is not None:
            has = parquet.schema_arrow.field("embedding").type.list_size
            if has != embedding_dim:
                raise InfinegError(
                    f"{uri}: embeddings of {has} numbers, but dataset.json says {embedding_dim}; "
                    "`infineg verify` lists all differences"
                )
        rows = parquet.read(_COLUMNS)
    if rows.num_rows != shard.num_samples:
        raise pa.ArrowInvalid(f"it has {rows.num_rows:,} rows")
    return rows


def join_rows(
    root: str,
    generation: int,
    targets: Sequence[str],
    of_shards: Sequence[tuple[ShardRecord, pa.Table]],
    *,
    num_folds: int = 1,
) -> TrainRows:
    """Concatenates the rows of shards.

    Raises InfinegError without positives or negatives, and where a fold would leave none.
    """
    has = {bool(shard.label) for shard, _ in of_shards}
    for wanted, is_positive in (("positives", True), ("negatives", False)):
        if is_positive not in has:
            raise InfinegError(
                f"{root}: generation {generation} has no {wanted} in its train split; "
                "add a source and run `infineg build`"
            )
    table = pa.concat_tables([rows for _, rows in of_shards])
    joined = TrainRows(
        generation=generation,
        targets=tuple(targets),
        shards=tuple(shard for shard, _ in of_shards),
        starts=np.cumsum([0, *(rows.num_rows for _, rows in of_shards)]),
        keys=table["key"],
        tar_offset_N=table["tar_offset"].to_numpy(),
        tar_size_N=table["tar_size"].to_numpy(),
        inverse_probability_N=(1 / table["inclusion_probability"].to_numpy()).astype(np.float32),
        similarity_N=table["similarity"].to_numpy().astype(np.float32),
        is_photo_N=pc.fill_null(pc.not_equal(table["stratum"], "generated"), True).to_numpy(),
        fold_N=folds_of(table["group"], num_folds),
    )
    if num_folds > 1:
        _check_folds(root, joined, num_folds)
    return joined


def _check_folds(root: str, rows: TrainRows, num_folds: int) -> None:
    """Raises InfinegError where all rows of one label are in one fold."""
    label_N = rows.label_N
    for label in sorted(set(label_N.tolist())):
        members = label_N == label
        name = f"positives of {label}" if label else "negatives"
        if len(set(rows.fold_N[members].tolist())) == 1:
            raise InfinegError(
                f"{root}: all {members.sum():,} {name} of generation {rows.generation} are in one "
                f"of {num_folds} folds, without which one head would be trained; add some, or use "
                "train.folds: 1"
            )


def folds_of(groups: pa.ChunkedArray, num_folds: int) -> NDArray[np.int8]:
    """fold_N by leakage group, so that no head is trained on what is as good as its held-out rows.

    A pure function of the group: rows that are added later move no row to another fold.
    """
    if num_folds == 1:
        return np.zeros(len(groups), np.int8)
    return np.array(
        [int(unit_hash("head fold", group) * num_folds) for group in groups.to_pylist()], np.int8
    )


def read_embeddings(root: str, rows: TrainRows) -> NDArray[np.float16]:
    """embedding_ND of all rows. Raises InfinegError if a row has none."""
    tables = (Dataset(root).read_sidecar(shard, ("embedding",)) for shard in rows.shards)
    return np.concatenate([embeddings_of(table) for table in tables])


def embeddings_of(rows: pa.Table) -> NDArray[np.float16]:
    """embedding_ND float16 of a sidecar. Raises InfinegError if a row has none."""
    column = rows["embedding"].combine_chunks()
    if column.null_count:
        raise InfinegError(
            f"{column.null_count} of {rows.num_rows} rows have no embedding; train.mode: finetune "
            "needs none"
        )
    embeddings: NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=False)
    return embeddings.reshape(rows.num_rows, -1)
