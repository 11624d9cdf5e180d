"""A data set on disk or in an object store: its records, generations, plans, parts and tables.

Every path in a record is relative to the data set, so that a copy of the folder is the data set.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from more_itertools import chunked
from pydantic import BaseModel, ValidationError

from pipeline import storage
from pipeline.dataset.metadata import (
    NO_GENERATION,
    DatasetInfo,
    Generation,
    PartRecord,
    ReferenceInfo,
    ShardRecord,
    SourcePlan,
)
from pipeline.dataset.schema import SPLITS, Split
from pipeline.errors import BadShard, ConfigError, InfinegError

RecordT = TypeVar("RecordT", bound=BaseModel)
_ROWS_AT_ONCE = 8192
_RECORDS_AT_ONCE = 1024  # part records of a round, which may have very many


class Span(Protocol):
    """Consecutive partitions of a round that one task reads: the task, or a part record of it."""

    @property
    def source(self) -> str: ...
    @property
    def round(self) -> int: ...
    @property
    def span(self) -> int:
        """Number in the round."""

    @property
    def span_id(self) -> str: ...


@dataclass(frozen=True)
class Dataset:
    """A data set at `root`, which need not exist yet.

    Every method reads or writes the storage and nothing is cached: a caller that needs the same
    state twice keeps what it has read. A committed generation never changes.
    """

    root: str

    def uri(self, path: str) -> str:
        """Where a file of the data set lies."""
        return storage.join(self.root, path)

    def exists(self) -> bool:
        return storage.exists(self.uri("dataset.json"))

    def read_info(self) -> DatasetInfo:
        """`dataset.json`. Raises ConfigError if there is none."""
        info = self._read_record("dataset.json", DatasetInfo)
        if info is None:
            raise ConfigError(
                f"{self.root}: no data set there (no dataset.json); `infineg build` makes one"
            )
        return info

    def write_info(self, info: DatasetInfo) -> None:
        self._write_record("dataset.json", info)

    def latest_number(self) -> int:
        """Number of the latest generation, 0 before the first one.

        The files decide: the number in dataset.json may lag behind after a crash.
        """
        names = storage.list_files(self.uri("generations"), (".json",))
        return max((int(name.removesuffix(".json")) for name in names), default=0)

    def read_latest(self) -> Generation:
        """The latest generation; before the first one, the empty generation 0."""
        number = self.latest_number()
        return self.read_generation(number) if number else NO_GENERATION

    def read_generation(self, number: int | None = None) -> Generation:
        """A committed generation, by default the latest. Raises ConfigError if there is none."""
        number = self.latest_number() if number is None else number
        if number == 0:
            raise ConfigError(f"{self.root}: no generation is committed yet; run `infineg build`")
        generation = self._read_record(generation_path(number), Generation)
        if generation is None:
            latest = self.latest_number() or "none yet"
            raise ConfigError(f"{self.root}: no generation {number}; the latest is {latest}")
        return generation

    def commit_generation(self, generation: Generation) -> None:
        """Writes the generation, which is the commit.

        Raises InfinegError if another process has committed one of this number.
        """
        uri = self.uri(generation_path(generation.number))
        if not storage.create_exclusive(uri, _encode(generation)):
            raise InfinegError(
                f"{uri}: another process committed this generation meanwhile; run again"
            )

    def write_derived(self, generation: Generation) -> None:
        """Updates `_info.json` and then `dataset.json`, the last step after a commit."""
        shards = generation.shards
        timm_info = {"splits": {_TIMM_NAMES[split]: _timm_split(split, shards) for split in SPLITS}}
        content = (json.dumps(timm_info, indent=1) + "\n").encode()
        storage.write_atomic(self.uri("_info.json"), content)
        info = self.read_info()
        self.write_info(info.model_copy(update={"latest_generation": generation.number}))

    def read_plan(self, source: str) -> SourcePlan | None:
        """The plan of the source's latest round."""
        return self._read_record(f"plans/{source}.json", SourcePlan)

    def write_plan(self, plan: SourcePlan) -> None:
        self._write_record(f"plans/{plan.source}.json", plan)

    def read_reference(self) -> ReferenceInfo | None:
        return self._read_record("reference.json", ReferenceInfo)

    def write_reference(self, info: ReferenceInfo) -> None:
        self._write_record("reference.json", info)

    def iterate_parts(self, source: str, round_number: int) -> Iterator[PartRecord]:
        """Committed parts of one round in the order of its spans, some in memory at a time."""
        folder = round_folder(source, round_number)
        names = sorted(storage.list_files(self.uri(folder), (".json",)), key=_place_of_part)
        for some in chunked(names, _RECORDS_AT_ONCE):
            paths = [self.uri(f"{folder}/{name}") for name in some]
            for path, content in zip(paths, storage.read_many(paths), strict=True):
                yield _parse_record(path, content, PartRecord)

    def read_part(self, span: Span, part: int) -> PartRecord | None:
        return self._read_record(part_stem(span, part) + ".json", PartRecord)

    def commit_part(self, record: PartRecord) -> None:
        self._write_record(part_stem(record, record.part) + ".json", record)

    def read_table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A parquet file of the data set, all or some columns."""
        with storage.open_read(self.uri(path)) as file, storage.reading(self.uri(path)):
            return pq.read_table(file, columns=list(columns) if columns is not None else None)

    def iterate_table(self, path: str) -> Iterator[pa.Table]:
        """A parquet file of the data set, some rows at a time: a ledger may have a million."""
        with storage.open_read(self.uri(path)) as file, pq.ParquetFile(file) as table:
            for rows in table.iter_batches(_ROWS_AT_ONCE):
                yield pa.Table.from_batches([rows])

    def read_tables(
        self, paths: Iterable[str], columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """`read_table` of each path, in order, some read ahead."""
        return storage.map_ahead(lambda path: self.read_table(path, columns), paths)

    def read_sidecar(self, shard: ShardRecord, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a shard in tar order: `row_schema` without `image`, plus where the image lies.

        `tar_offset` and `tar_size` (int64, bytes) give the image inside the tar, which is not
        compressed, so that one sample can be read without the others. Raises BadShard if it is
        missing.
        """
        try:
            return self.read_table(shard.sidecar_path, columns)
        except FileNotFoundError:
            raise BadShard(
                f"{self.uri(shard.sidecar_path)}: missing. Restore it from a copy; if it was "
                "purged (`infineg takedown --purge`), work on the latest generation"
            ) from None

    def _read_record(self, path: str, record: type[RecordT]) -> RecordT | None:
        uri = self.uri(path)
        try:
            return _parse_record(uri, storage.read_bytes(uri), record)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _write_record(self, path: str, record: BaseModel) -> None:
        storage.write_atomic(self.uri(path), _encode(record))


def generation_path(number: int) -> str:
    return f"generations/{number:06d}.json"


def round_folder(source: str, round_number: int) -> str:
    return f"parts/{source}/{round_number:06d}"


def part_stem(span: Span, part: int) -> str:
    """Path of a part without its suffix."""
    return f"{round_folder(span.source, span.round)}/{span.span:06d}-{part:06d}"


def _place_of_part(name: str) -> tuple[int, int]:
    """Span and part from a record's name. As text, numbers of seven digits sort wrongly."""
    span, _, part = name.removesuffix(".json").partition("-")
    return int(span), int(part)


# The names that timm uses: https://github.com/huggingface/pytorch-image-models reader_wds.py
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


def _parse_record(uri: str, content: bytes, record: type[RecordT]) -> RecordT:
    try:
        return record.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise InfinegError(
            f"{uri}: not a {record.__name__} that this version reads "
            f"({where + ': ' if where else ''}{reason})"
        ) from None


def _encode(record: BaseModel) -> bytes:
    return (record.model_dump_json(indent=1) + "\n").encode()
