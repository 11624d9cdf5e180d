"""The methods of `Dataset` as functions of a root, for callers that are not converted yet."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from pipeline.dataset import dataset as _dataset
from pipeline.dataset.dataset import Dataset, generation_path, round_folder
from pipeline.dataset.metadata import (
    DatasetInfo,
    Generation,
    PartRecord,
    ReferenceInfo,
    ShardRecord,
    SourcePlan,
    TakenDown,
)

__all__ = ["generation_path", "round_folder"]


class _Span(NamedTuple):
    source: str
    round: int
    span: int
    span_id: str = ""


def read_info(root: str) -> DatasetInfo | None:
    return Dataset(root).read_info() if Dataset(root).exists() else None


def require_info(root: str) -> DatasetInfo:
    return Dataset(root).read_info()


def write_info(root: str, info: DatasetInfo) -> None:
    Dataset(root).write_info(info)


def latest_generation_number(root: str) -> int:
    return Dataset(root).latest_number()


def read_generation(root: str, number: int | None = None) -> Generation:
    return Dataset(root).read_generation(number)


def read_taken_down(root: str) -> TakenDown:
    return Dataset(root).read_latest().taken_down


def commit_generation(root: str, generation: Generation) -> None:
    Dataset(root).commit_generation(generation)


def is_complete(root: str) -> bool:
    return require_info(root).latest_generation == latest_generation_number(root)


def write_derived(root: str, generation: Generation) -> None:
    Dataset(root).write_derived(generation)


def part_stem(source: str, round_number: int, span: int, part: int) -> str:
    return _dataset.part_stem(_Span(source, round_number, span), part)


def iterate_part_records(root: str, source: str, round_number: int) -> Iterator[PartRecord]:
    return Dataset(root).iterate_parts(source, round_number)


def read_part_record(
    root: str, source: str, round_number: int, span: int, part: int
) -> PartRecord | None:
    return Dataset(root).read_part(_Span(source, round_number, span), part)


def commit_part(root: str, record: PartRecord) -> None:
    Dataset(root).commit_part(record)


def read_plan(root: str, source: str) -> SourcePlan | None:
    return Dataset(root).read_plan(source)


def write_plan(root: str, plan: SourcePlan) -> None:
    Dataset(root).write_plan(plan)


def read_reference_info(root: str) -> ReferenceInfo | None:
    return Dataset(root).read_reference()


def write_reference_info(root: str, info: ReferenceInfo) -> None:
    Dataset(root).write_reference(info)


def read_table(root: str, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    return Dataset(root).read_table(path, columns)


def iterate_table(root: str, path: str) -> Iterator[pa.Table]:
    return Dataset(root).iterate_table(path)


def read_tables(
    root: str, paths: Iterable[str], columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    return Dataset(root).read_tables(paths, columns)


def read_sidecar(root: str, shard: ShardRecord, columns: Sequence[str] | None = None) -> pa.Table:
    return Dataset(root).read_sidecar(shard, columns)
