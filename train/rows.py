"""Rows of a generation's train split, numbered over its shards.

Shapes: B batch, D embedding, K targets, N rows, S shards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import manifest
from pipeline.commits import Generation, ShardRecord
from pipeline.errors import InfinegError


@dataclass(frozen=True)
class TrainRows:
    """The train split without its images and embeddings: about 100 bytes a row."""

    targets: tuple[str, ...]
    shards: tuple[ShardRecord, ...]
    starts: NDArray[np.int64]  # first row of each shard, and the number of rows
    keys: pa.ChunkedArray
    tar_offset_N: NDArray[np.int64]
    tar_size_N: NDArray[np.int64]
    inverse_probability_N: NDArray[np.float32]
    similarity_N: NDArray[np.float32]  # nan where there is none
    is_unknown_N: NDArray[np.bool_]  # negatives whose label_state is unknown

    @property
    def positives(self) -> list[range]:
        """Rows of each shard that shows a target."""
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
        """Of each shard."""
        shown = [[shard.label == name for name in self.targets] for shard in self.shards]
        return torch.tensor(shown).float()

    def where(self, is_kept_N: NDArray[np.bool_]) -> "TrainRows":
        """Some of the rows, numbered anew; shards may be left without any."""
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


def read_train_rows(root: str, generation: Generation, targets: Sequence[str]) -> TrainRows:
    """Reads the sidecars of the train split. Raises InfinegError where a label is missing."""
    shards = tuple(shard for shard in generation.shards if shard.split == "train")
    columns = (
        "key", "tar_offset", "tar_size", "inclusion_probability", "similarity", "label",
        "label_state",
    )  # fmt: skip
    tables = [manifest.read_sidecar(root, shard, columns) for shard in shards]
    for wanted, found in (("positives", [s for s in shards if s.label]),
                          ("negatives", [s for s in shards if not s.label])):  # fmt: skip
        if not found:
            raise InfinegError(
                f"{root}: generation {generation.number} has no {wanted} in its train split; "
                "add a source and run `infineg build`"
            )
    table = pa.concat_tables(tables)
    return TrainRows(
        targets=tuple(targets),
        shards=shards,
        starts=np.cumsum([0, *(each.num_rows for each in tables)]),
        keys=table["key"],
        tar_offset_N=table["tar_offset"].to_numpy(),
        tar_size_N=table["tar_size"].to_numpy(),
        inverse_probability_N=(1 / table["inclusion_probability"].to_numpy()).astype(np.float32),
        similarity_N=table["similarity"].to_numpy().astype(np.float32),
        is_unknown_N=pc.and_(
            pc.equal(table["label"], ""), pc.equal(table["label_state"], "unknown")
        ).to_numpy(),
    )


def read_embeddings(root: str, rows: TrainRows) -> NDArray[np.float16]:
    """embedding_ND of all rows. Raises InfinegError where one has none."""
    tables = (manifest.read_sidecar(root, shard, ("embedding",)) for shard in rows.shards)
    return np.concatenate([embeddings_of(table) for table in tables])


def embeddings_of(rows: pa.Table) -> NDArray[np.float16]:
    """embedding_ND float16 of a sidecar. Raises InfinegError where a row has none."""
    column = rows["embedding"].combine_chunks()
    if column.null_count:
        raise InfinegError(
            f"{column.null_count} of {rows.num_rows} rows have no embedding; train.mode: finetune "
            "needs none"
        )
    embeddings: NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=False)
    return embeddings.reshape(rows.num_rows, -1)
