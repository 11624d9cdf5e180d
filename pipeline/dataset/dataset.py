"""A data set on disk or in an object store: its records, generations, plans, parts and tables.

Every path in a record is relative to the data set, so that a copy of the folder is the data set.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from more_itertools import chunked
from pydantic import BaseModel

from pipeline import storage
from pipeline.dataset.metadata import (
    NO_GENERATION,
    DatasetInfo,
    Generation,
    PartRecord,
    ReferenceInfo,
    ShardFile,
    ShardRecord,
    SourcePlan,
    SourceRecord,
    TableRecord,
)
from pipeline.dataset.records import RecordT, decode_record, encode_record
from pipeline.dataset.schema import SPLITS, Split
from pipeline.errors import BadShard, ConfigError, InfinegError

_ROWS_AT_ONCE = 8192
_WHAT_NOW = "`infineg verify` lists all such files; restore them from a copy"
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
        info = self.read_record("dataset.json", DatasetInfo)
        if info is None:
            if storage.list_files(self.uri("generations"), (".json",)):
                raise InfinegError(
                    f"{self.root}: dataset.json is missing, but there are generations. Restore it "
                    "from a copy"
                )
            raise ConfigError(
                f"{self.root}: no data set there (no dataset.json); `infineg build` makes one"
            )
        return info

    def write_info(self, info: DatasetInfo) -> None:
        storage.write_atomic(self.uri("dataset.json"), encode_record(info), replaces=True)

    def latest_number(self) -> int:
        """Number of the latest generation, 0 before the first one. See `generation_numbers`."""
        return max(self.generation_numbers(), default=0)

    def generation_numbers(self) -> list[int]:
        """Of the generations that are there, in order.

        The files decide: the number in dataset.json may lag behind after a crash. Raises
        InfinegError if it is ahead, because then a generation was lost.
        """
        info = self.read_record("dataset.json", DatasetInfo)  # first: one may be committed now
        names = storage.list_files(self.uri("generations"), (".json",))
        numbers = sorted(int(name.removesuffix(".json")) for name in names)
        number = max(numbers, default=0)
        if info is not None and info.latest_generation > number:
            raise InfinegError(
                f"{self.uri(generation_path(info.latest_generation))} is missing: dataset.json "
                f"says that generation {info.latest_generation} is committed, and the latest there "
                f"is {number or 'none'}. Restore it from a copy. Nothing was changed: a build "
                "would take the files that it lists for garbage"
            )
        return numbers

    def read_latest(self) -> Generation:
        """The latest generation; before the first one, the empty generation 0."""
        number = self.latest_number()
        return self.read_generation(number) if number else NO_GENERATION

    def read_generation(self, number: int | None = None) -> Generation:
        """A committed generation, by default the latest.

        Raises ConfigError if there is none, and InfinegError if the latest is not the one that
        dataset.json names.
        """
        number = self.latest_number() if number is None else number
        if number == 0:
            raise ConfigError(f"{self.root}: no generation is committed yet; run `infineg build`")
        info = self.read_record("dataset.json", DatasetInfo)
        uri = self.uri(generation_path(number))
        content = self.read_if_there(generation_path(number))
        if content is None:
            if latest := self.latest_number():
                raise ConfigError(f"{self.root}: no generation {number}; the latest is {latest}")
            raise ConfigError(
                f"{self.root}: no data set there. A relative path begins at the folder in which "
                "the command runs; put a data set that was moved back to where the run's "
                "config.yaml says (output.path)"
            )
        generation = decode_record(uri, content, Generation)
        if info is not None and info.latest_generation == number:
            wanted, found = info.generation_sha256, hashlib.sha256(content).hexdigest()
            if wanted not in ("", found):
                raise InfinegError(
                    f"{uri}: not the generation that dataset.json names (sha256 {found}, not "
                    f"{wanted}): an older copy, perhaps. Restore the one, or both, of one time. "
                    "Nothing was changed"
                )
        return generation

    def commit_generation(self, generation: Generation) -> None:
        """Writes the generation, which is the commit.

        Raises InfinegError if another process has committed one of this number.
        """
        uri = self.uri(generation_path(generation.number))
        if not storage.create_exclusive(uri, encode_record(generation)):
            raise InfinegError(
                f"{uri}: another process committed this generation meanwhile; run again"
            )

    def write_derived(self, generation: Generation) -> None:
        """Updates `_info.json` and then `dataset.json`, the last step after a commit."""
        storage.write_atomic(self.uri("_info.json"), timm_info(generation), replaces=True)
        content = storage.read_bytes(self.uri(generation_path(generation.number)))
        latest = {
            "latest_generation": generation.number,
            "generation_sha256": hashlib.sha256(content).hexdigest(),
        }
        self.write_info(self.read_info().model_copy(update=latest))

    def read_plan(self, source: str) -> SourcePlan | None:
        """The plan of the source's latest round. Raises InfinegError if it is another's."""
        plan = self.read_record(plan_path(source), SourcePlan)
        if plan is not None and plan.source != source:
            raise InfinegError(
                f"{self.uri(plan_path(source))}: the plan of {plan.source!r}. Restore that of "
                f"{source!r} from a copy"
            )
        return plan

    def read_plan_of(self, record: SourceRecord) -> SourcePlan | None:
        """The plan of a committed source, also if it is another since or was extended.

        Raises InfinegError if it is neither, and yet not the one that the generation followed.
        """
        plan = self.read_plan(record.name)
        if plan is None or plan.fingerprint != record.fingerprint or not record.plan_sha256:
            return plan
        if plan.digest != record.plan_sha256 or plan.num_partitions < record.num_partitions:
            raise InfinegError(
                f"{self.uri(plan_path(record.name))}: not the plan by which the committed rows of "
                f"{record.name!r} were chosen: an older copy, or another data set's. Restore it "
                "from a copy"
            )
        return plan

    def write_plan(self, plan: SourcePlan) -> None:
        self._write_record(plan_path(plan.source), plan)

    def read_reference(self) -> ReferenceInfo | None:
        return self.read_record("reference.json", ReferenceInfo)

    def write_reference(self, info: ReferenceInfo) -> None:
        self._write_record("reference.json", info)

    def iterate_parts(self, source: str, round_number: int) -> Iterator[PartRecord]:
        """Committed parts of one round in the order of its spans, some in memory at a time."""
        folder = round_folder(source, round_number)
        names = sorted(storage.list_files(self.uri(folder), (".json",)), key=_place_of_part)
        for some in chunked(names, _RECORDS_AT_ONCE):
            paths = [self.uri(f"{folder}/{name}") for name in some]
            for path, content in zip(paths, storage.read_many(paths), strict=True):
                yield decode_record(path, content, PartRecord)

    def read_part(self, span: Span, part: int) -> PartRecord | None:
        return self.read_record(part_stem(span, part) + ".json", PartRecord)

    def commit_part(self, record: PartRecord) -> None:
        self._write_record(part_stem(record, record.part) + ".json", record)

    def read_table(
        self, path: str, columns: Sequence[str] | None = None, *, sha256: str | None = None
    ) -> pa.Table:
        """A parquet file of the data set, all or some columns.

        Raises BadShard if it is damaged, as far as it is read: with `sha256`, which is read as a
        whole and compared, or if its pages have checksums (those of parts).
        """
        names = list(columns) if columns is not None else None
        try:
            with storage.reading(self.uri(path)):
                if sha256:
                    file = io.BytesIO(self.read_checked(path, sha256))
                    return pq.read_table(file, columns=names)
                with storage.open_read(self.uri(path)) as stream:
                    return pq.read_table(stream, columns=names, page_checksum_verification=True)
        except OSError as error:
            if error.errno is not None:
                raise
            reason = str(error).partition("\n")[0]  # from Arrow, of what it cannot decode
            raise BadShard(f"{self.uri(path)}: damaged ({reason}); {_WHAT_NOW}") from None

    def read_checked(self, path: str, sha256: str) -> bytes:
        """A file of the data set. Raises BadShard if its content has another sha256."""
        content = storage.read_bytes(self.uri(path))
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise BadShard(
                f"{self.uri(path)}: damaged, or another file ({len(content):,} bytes of sha256 "
                f"{found}, recorded {sha256}); {_WHAT_NOW}"
            )
        return content

    def read_if_there(self, path: str) -> bytes | None:
        """A file of the data set; None if there is none."""
        try:
            return storage.read_bytes(self.uri(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

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

    def read_recorded(
        self, tables: Iterable[TableRecord], columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Ledgers or hashes, in order, compared with their records, some read ahead."""
        return storage.map_ahead(
            lambda table: self.read_table(table.path, columns, sha256=table.sha256), tables
        )

    def read_sidecar(self, shard: ShardFile, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a shard in tar order: `row_schema` without `image`, plus where the image lies.

        `tar_offset` and `tar_size` (int64, bytes) give the image inside the tar, which is not
        compressed, so that one sample can be read without the others. Where most of the file is
        read, it is compared with its record. Raises BadShard if it is missing or damaged.
        """
        reads_most = columns is None or "embedding" in columns
        sha256 = shard.sidecar_sha256 if reads_most else None
        try:
            return self.read_table(shard.sidecar_path, columns, sha256=sha256)
        except FileNotFoundError:
            raise BadShard(
                f"{self.uri(shard.sidecar_path)}: missing. Restore it from a copy; if it was "
                "purged (`infineg takedown --purge`), work on the latest generation"
            ) from None

    def read_record(self, path: str, record: type[RecordT]) -> RecordT | None:
        """None if there is no such file. Raises InfinegError if it is damaged."""
        content = self.read_if_there(path)
        return None if content is None else decode_record(self.uri(path), content, record)

    def _write_record(self, path: str, record: BaseModel) -> None:
        storage.write_atomic(self.uri(path), encode_record(record))


def generation_path(number: int) -> str:
    return f"generations/{number:06d}.json"


def plan_path(source: str) -> str:
    return f"plans/{source}.json"


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


def timm_info(generation: Generation) -> bytes:
    """The content of `_info.json`."""
    splits = {_TIMM_NAMES[split]: _timm_split(split, generation.shards) for split in SPLITS}
    return (json.dumps({"splits": splits}, indent=1) + "\n").encode()


def _timm_split(split: Split, shards: Sequence[ShardRecord]) -> dict[str, object]:
    members = [shard for shard in shards if shard.split == split]
    return {
        "name": _TIMM_NAMES[split],
        "filenames": [shard.path for shard in members],
        "shard_lengths": [shard.num_samples for shard in members],
        "num_samples": sum(shard.num_samples for shard in members),
        "alt_label": "",
    }
