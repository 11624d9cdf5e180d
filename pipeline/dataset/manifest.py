"""The index of a data set: reads and commits `dataset.json`, part records and generations.

Every path in a record is relative to the data set, so that a copy of the folder is the data set.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from more_itertools import chunked
from pydantic import BaseModel, ValidationError

from pipeline import storage
from pipeline.dataset.metadata import (
    DatasetInfo,
    Generation,
    PartRecord,
    ReferenceInfo,
    ShardRecord,
    SourcePlan,
    TakenDown,
)
from pipeline.dataset.schema import SPLITS, Split
from pipeline.errors import ConfigError, InfinegError

RecordT = TypeVar("RecordT", bound=BaseModel)
_ROWS_AT_ONCE = 8192
_RECORDS_AT_ONCE = 1024  # of parts, of which a round may have very many


def read_info(root: str) -> DatasetInfo | None:
    """`dataset.json`, or None where no data set has been begun."""
    path = storage.join(root, "dataset.json")
    return _read_record(path, DatasetInfo) if storage.exists(path) else None


def require_info(root: str) -> DatasetInfo:
    info = read_info(root)
    if info is None:
        raise ConfigError(f"{root}: no data set there (no dataset.json); `infineg build` makes one")
    return info


def write_info(root: str, info: DatasetInfo) -> None:
    _write_record(storage.join(root, "dataset.json"), info)


def generation_path(number: int) -> str:
    return f"generations/{number:06d}.json"


def latest_generation_number(root: str) -> int:
    """0 where none is committed. The files decide: the number in dataset.json may lag a crash."""
    names = storage.list_files(storage.join(root, "generations"), (".json",))
    return max((int(name.removesuffix(".json")) for name in names), default=0)


def read_generation(root: str, number: int | None = None) -> Generation:
    """A committed generation, by default the latest."""
    number = latest_generation_number(root) if number is None else number
    if number == 0:
        raise ConfigError(f"{root}: no generation is committed yet; run `infineg build`")
    path = storage.join(root, generation_path(number))
    if not storage.exists(path):
        latest = latest_generation_number(root)
        raise ConfigError(f"{root}: no generation {number}; the latest is {latest or 'none yet'}")
    return _read_record(path, Generation)


def read_taken_down(root: str) -> TakenDown:
    """What the latest generation says must never be used."""
    number = latest_generation_number(root)
    return read_generation(root, number).taken_down if number else TakenDown()


def commit_generation(root: str, generation: Generation) -> None:
    """Writes the generation, which is the commit.

    Raises InfinegError where another process has committed one of this number.
    """
    uri = storage.join(root, generation_path(generation.number))
    if not storage.create_exclusive(uri, _encode(generation)):
        raise InfinegError(f"{uri}: another process committed this generation meanwhile; run again")


def is_complete(root: str) -> bool:
    """Whether all is done that follows the commit of the latest generation."""
    return require_info(root).latest_generation == latest_generation_number(root)


def write_derived(root: str, generation: Generation) -> None:
    """Brings `_info.json` and, last of all that follows a commit, `dataset.json` up to it."""
    shards = generation.shards
    timm_info = {"splits": {_TIMM_NAMES[split]: _timm_split(split, shards) for split in SPLITS}}
    storage.write_atomic(
        storage.join(root, "_info.json"), (json.dumps(timm_info, indent=1) + "\n").encode()
    )
    info = require_info(root)
    write_info(root, info.model_copy(update={"latest_generation": generation.number}))


# timm looks for these names: https://github.com/huggingface/pytorch-image-models reader_wds.py
_TIMM_NAMES: dict[Split, str] = {"train": "train", "val": "validation", "test": "test"}


def _timm_split(split: Split, shards: Sequence[ShardRecord]) -> dict[str, object]:
    members = [shard for shard in shards if shard.split == split]
    return {
        "name": _TIMM_NAMES[split],
        "filenames": [shard.path for shard in members],
        "shard_lengths": [shard.num_samples for shard in members],
        "num_samples": sum(shard.num_samples for shard in members),
        "alt_label": "",
    }


def round_folder(source: str, round_number: int) -> str:
    return f"parts/{source}/{round_number:06d}"


def part_stem(source: str, round_number: int, span: int, part: int) -> str:
    """Path of a part without its suffix."""
    return f"{round_folder(source, round_number)}/{span:06d}-{part:06d}"


def iterate_part_records(root: str, source: str, round_number: int) -> Iterator[PartRecord]:
    """Committed parts of one round, in the order of its spans; memory holds some at a time."""
    folder = storage.join(root, round_folder(source, round_number))
    names = sorted(storage.list_files(folder, (".json",)), key=_place_of_part)
    for some in chunked(names, _RECORDS_AT_ONCE):
        paths = [storage.join(folder, name) for name in some]
        for path, content in zip(paths, storage.read_many(paths), strict=True):
            yield _parse_record(path, content, PartRecord)


def _place_of_part(name: str) -> tuple[int, int]:
    """Span and part by the name of a record: with a seventh digit text is out of order."""
    span, _, part = name.removesuffix(".json").partition("-")
    return int(span), int(part)


def read_part_record(
    root: str, source: str, round_number: int, span: int, part: int
) -> PartRecord | None:
    path = storage.join(root, part_stem(source, round_number, span, part) + ".json")
    return _read_record(path, PartRecord) if storage.exists(path) else None


def commit_part(root: str, record: PartRecord) -> None:
    stem = part_stem(record.source, record.round, record.span, record.part)
    _write_record(storage.join(root, stem + ".json"), record)


def read_plan(root: str, source: str) -> SourcePlan | None:
    """The plan of the source's latest round."""
    path = storage.join(root, f"plans/{source}.json")
    return _read_record(path, SourcePlan) if storage.exists(path) else None


def write_plan(root: str, plan: SourcePlan) -> None:
    _write_record(storage.join(root, f"plans/{plan.source}.json"), plan)


def read_reference_info(root: str) -> ReferenceInfo | None:
    path = storage.join(root, "reference.json")
    return _read_record(path, ReferenceInfo) if storage.exists(path) else None


def write_reference_info(root: str, info: ReferenceInfo) -> None:
    _write_record(storage.join(root, "reference.json"), info)


def read_table(root: str, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A parquet file of the data set, whole or some columns."""
    with storage.open_read(storage.join(root, path)) as file:
        return pq.read_table(file, columns=list(columns) if columns is not None else None)


def iterate_table(root: str, path: str) -> Iterator[pa.Table]:
    """A parquet file of the data set, some rows at a time: a ledger may have a million."""
    with storage.open_read(storage.join(root, path)) as file, pq.ParquetFile(file) as table:
        for rows in table.iter_batches(_ROWS_AT_ONCE):
            yield pa.Table.from_batches([rows])


def read_tables(
    root: str, paths: Iterable[str], columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """`read_table` of each, in order, some read ahead."""
    return storage.map_ahead(lambda path: read_table(root, path, columns), paths)


def read_sidecar(root: str, shard: ShardRecord, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a shard in tar order: `row_schema` without `image`, plus where the image lies.

    `tar_offset` and `tar_size` (int64, bytes) give the image inside the tar, which is not
    compressed, so that one sample can be read without the others.
    """
    return read_table(root, shard.sidecar_path, columns)


def _read_record(path: str, record: type[RecordT]) -> RecordT:
    return _parse_record(path, storage.read_bytes(path), record)


def _parse_record(path: str, content: bytes, record: type[RecordT]) -> RecordT:
    try:
        return record.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise InfinegError(
            f"{path}: not a {record.__name__} that this version reads "
            f"({where + ': ' if where else ''}{reason})"
        ) from None


def _write_record(path: str, record: BaseModel) -> None:
    storage.write_atomic(path, _encode(record))


def _encode(record: BaseModel) -> bytes:
    return (record.model_dump_json(indent=1) + "\n").encode()
