"""Earlier shards, in which mining raises inclusion probabilities and finds suspected positives.

No file is changed. Where probabilities rise, the new generation lists the same tar with a new
sidecar, `<stem>.g<generation>.parquet`; `inclusion_probability` in the tar's `<key>.json` stays
that of the generation that wrote it. A shard that holds a suspect is replaced by one without it.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset import Dataset
from pipeline.dataset.metadata import DatasetInfo, Generation, ShardRecord
from pipeline.dataset.schema import with_columns
from pipeline.dataset.shards import group_of, read_shard, write_shard
from pipeline.dataset.tables import take_number, write_table


class Change(NamedTuple):
    """What mining decided about a sample that was selected before."""

    probability: float
    is_suspect: bool


def replace_shard(
    dataset: Dataset,
    info: DatasetInfo,
    shard: ShardRecord,
    changes: Mapping[str, Change],
    *,
    generation: int,
    numbers: dict[str, int],
) -> list[ShardRecord]:
    """Zero or one shard in place of `shard`: itself, its tar with a new sidecar, or a new shard.

    changes: of every sample in it, by key. numbers: `next_numbers` of the generation; updated.
    """
    sidecar = dataset.read_sidecar(shard, ("key", "inclusion_probability"))
    changed = [changes[key] for key in sidecar["key"].to_pylist()]
    probability_N = np.array([change.probability for change in changed], np.float32)
    if any(change.is_suspect for change in changed):
        is_kept_N = np.array([not change.is_suspect for change in changed])
        return _without(dataset, info, shard, probability_N, is_kept_N, numbers)
    if np.array_equal(sidecar["inclusion_probability"].to_numpy(), probability_N):
        return [shard]
    rows = _with_probability(dataset.read_sidecar(shard), probability_N)
    path = f"{shard.path.removesuffix('.tar')}.g{generation:06d}.parquet"
    sha256 = write_table(dataset, path, rows).sha256
    return [shard.model_copy(update={"sidecar_path": path, "sidecar_sha256": sha256})]


def is_minable(shard: ShardRecord, names: Collection[str]) -> bool:
    """Whether it holds training negatives of one of the sources `names`."""
    return shard.source in names and shard.split == "train" and not shard.label


def replace_shards(
    dataset: Dataset,
    parent: Generation,
    names: Collection[str],
    changes: Mapping[str, Change],
    *,
    numbers: dict[str, int],
) -> Iterator[ShardRecord]:
    """The shards of the parent, updated where they belong to the mined sources `names`."""
    info = dataset.read_info()
    for shard in parent.shards:
        if is_minable(shard, names):
            yield from replace_shard(
                dataset, info, shard, changes, generation=parent.number + 1, numbers=numbers
            )
        else:
            yield shard


def _without(
    dataset: Dataset,
    info: DatasetInfo,
    shard: ShardRecord,
    probability_N: NDArray[np.float32],
    is_kept_N: NDArray[np.bool_],
    numbers: dict[str, int],
) -> list[ShardRecord]:
    """A new shard with only the kept samples, if any."""
    rows, round_number = read_shard(dataset, shard)
    rows = _with_probability(rows, probability_N).filter(pa.array(is_kept_N))
    if not rows.num_rows:
        return []
    group = group_of(shard.path)
    file = write_shard(
        dataset,
        rows,
        stem=f"{group}-{take_number(numbers, group):06d}",
        targets=info.targets,
        encoder=info.encoder,
        round_number=round_number,
    )
    return [ShardRecord(**file.model_dump(), split=shard.split, label=shard.label)]


def _with_probability(rows: pa.Table, probability_N: NDArray[np.float32]) -> pa.Table:
    return with_columns(rows, inclusion_probability=pa.array(probability_N, pa.float32()))
