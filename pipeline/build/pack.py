"""Committed parts become the shards of a new generation."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import pyarrow as pa
from more_itertools import chunked
from pydantic import BaseModel

from pipeline import storage
from pipeline.build.reading import Round
from pipeline.cluster.process import Task
from pipeline.cluster.workers import Cluster
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.dataset import part_stem
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.embedding_cache import embeddings_path, write_checksums
from pipeline.dataset.metadata import Generation, ShardFile, SourceRecord, add_counts
from pipeline.dataset.shards import sort_files, write_shard
from pipeline.dataset.tables import (
    PartRows,
    RoundTables,
    take_number,
    take_table_paths,
    write_tables,
)
from pipeline.errors import InfinegError
from pipeline.telemetry.progress import Progress
from pipeline.worker.rejects import refuse_unusable


class AddedPart(NamedTuple):
    """A part with more selected rows than the one that it replaces."""

    path: str
    sha256: str


def pack_generation(
    config: Config,
    parent: Generation,
    rounds: Sequence[Round],
    cluster: Cluster,
    seen: SeenImages,
    added: Mapping[str, AddedPart],
) -> Generation:
    """Writes the shards and tables of some rounds; returns the generation to commit.

    parent: the generation to extend. seen: the images of its shards, to which those of the rounds
    are added, so that the next rounds need not read them. added: parts with more selected rows, by
    the paths of those that they replace. Nothing of this counts until the generation is committed:
    after an interruption here the same files are written again.
    """
    dataset = Dataset(config.output.path)
    sources = {source.name: source for source in parent.sources}
    numbers = dict(parent.next_numbers)
    tasks: list[ShardTask] = []
    for round_ in rounds:
        ledger_path, hashes_path = take_table_paths(numbers, round_.source)
        sums = _checksums_of_parts(dataset, round_)
        write_checksums(dataset, round_.source, round_.number, sums.embeddings)
        sha256 = dict(added.get(path, (path, own)) for path, own in sums.parts.items())
        tables = write_tables(
            dataset,
            list(sha256),
            seen,
            ledger_path=ledger_path,
            hashes_path=hashes_path,
            taken_down=parent.taken_down,
        )
        record = _source_record(round_, tables, sources.get(round_.source))
        _refuse_unusable(dataset, record)
        sources[round_.source] = record
        tasks += cut_shards(
            [replace(part, sha256=sha256[part.path]) for part in tables.parts],
            source=round_.source,
            samples_per_shard=config.output.samples_per_shard,
            round_number=round_.number,
            next_numbers=numbers,
        )
    shards, quarantine = sort_files(pack_shards(config, tasks, cluster))
    return Generation(
        number=parent.number + 1,
        parent=parent.number or None,
        sources=tuple(sources.values()),
        shards=(*parent.shards, *shards),
        quarantine=(*parent.quarantine, *quarantine),
        next_numbers=dict(sorted(numbers.items())),
        taken_down=parent.taken_down,
        takedowns=parent.takedowns,
        mined=parent.mined,
    )


def without_sources(generation: Generation, names: Set[str]) -> Generation:
    """The same without some sources. Their files stay, for earlier generations that list them."""
    mined = (
        record.model_copy(update={"sources": tuple(n for n in record.sources if n not in names)})
        for record in generation.mined
    )
    return generation.model_copy(
        update={
            "sources": tuple(s for s in generation.sources if s.name not in names),
            "shards": tuple(s for s in generation.shards if s.source not in names),
            "quarantine": tuple(s for s in generation.quarantine if s.source not in names),
            "mined": tuple(mined),
        }
    )


class _Checksums(NamedTuple):
    """sha256 of committed files by path: the parts of a round, and their embeddings if kept."""

    parts: dict[str, str]
    embeddings: dict[str, str]


def _checksums_of_parts(dataset: Dataset, round_: Round) -> _Checksums:
    """All parts of a round in the order of its spans; raises if one is missing."""
    found = _Checksums({}, {})
    span = part = 0
    for record in dataset.iterate_parts(round_.source, round_.number):
        if (record.span, record.part) != (span, part):
            break
        found.parts[record.path] = record.sha256
        if record.embeddings_sha256 is not None:
            path = embeddings_path(part_stem(record, record.part))
            found.embeddings[path] = record.embeddings_sha256
        span, part = (span + 1, 0) if record.is_last else (span, part + 1)
        if span == round_.num_spans:
            return found
    raise InfinegError(
        f"source {round_.source!r}: part {part} of span {span} of round {round_.number} is not "
        "committed though its worker ended; run again"
    )


class Piece(BaseModel, frozen=True):
    """Rows of a part, by position."""

    part_path: str
    rows: tuple[int, ...]
    sha256: str | None = None  # of the part, if it is committed


class ShardTask(Task, frozen=True):
    """One shard to write: `group` is its path without the number and suffix."""

    source: str
    round: int
    group: str
    number: int
    pieces: tuple[Piece, ...]

    @property
    def stem(self) -> str:
        return f"{self.group}-{self.number:06d}"


class _Packer:
    """Writes shards, in a worker process."""

    def __init__(self, config: Config, fence: storage.Fence | None) -> None:
        storage.configure(config.storage)
        storage.fence_worker(config.output.path, fence)
        self._dataset = Dataset(config.output.path)
        self._info = self._dataset.read_info()

    def pack(self, task: ShardTask) -> Iterator[pa.Table]:
        info = self._info
        file = pack_shard(self._dataset, task, targets=info.targets, encoder=info.encoder)
        yield pa.table({"record": [file.model_dump_json()]})


def pack_shards(config: Config, tasks: Sequence[ShardTask], cluster: Cluster) -> list[ShardFile]:
    """Writes shards on all workers; returns them in the order of their paths."""
    make_packer = functools.partial(_Packer, config, storage.fence_of(config.output.path))
    files = []
    with Progress("pack", total=len(tasks), unit="shards") as progress:
        for table in cluster.map(_Packer.pack, tasks, make_worker=make_packer):
            files.append(ShardFile.model_validate_json(table["record"][0].as_py()))
            progress.advance()
    return sorted(files, key=lambda file: file.path)


def _source_record(round_: Round, tables: RoundTables, before: SourceRecord | None) -> SourceRecord:
    """The source's record after another round."""
    return SourceRecord(
        name=round_.source,
        fingerprint=round_.planned.plan.fingerprint,
        role=round_.planned.plan.role,
        num_rounds=round_.number,
        num_partitions=round_.last,
        counts=add_counts([before.counts, tables.counts] if before else [tables.counts]),
        ledger=(*(before.ledger if before else ()), tables.ledger),
        hashes=(*(before.hashes if before else ()), tables.hashes),
        plan_sha256=round_.planned.plan.digest,
    )


def _refuse_unusable(dataset: Dataset, record: SourceRecord) -> None:
    counts = record.counts
    first = next(dataset.iterate_table(record.ledger[-1].path), None)
    example = (first["uri"][0].as_py() if first is not None and first.num_rows else "") or ""
    refuse_unusable(record.name, counts.read, counts.rejected, example)


def cut_shards(
    parts: Iterable[PartRows],
    *,
    source: str,
    samples_per_shard: int,
    round_number: int,
    next_numbers: dict[str, int],
) -> list[ShardTask]:
    """Cuts the rows of each output group, in the order of `parts`, every `samples_per_shard`.

    Shards take their numbers from `next_numbers`, which is updated.
    """
    places: dict[str, list[tuple[str, int]]] = {}  # part and position of each row, by group
    sha256: dict[str, str | None] = {}
    for part in parts:
        sha256[part.path] = part.sha256
        for group, positions in part.rows.items():
            places.setdefault(group, []).extend((part.path, position) for position in positions)
    tasks = [
        ShardTask(
            source=source,
            round=round_number,
            group=group,
            number=take_number(next_numbers, group),
            pieces=tuple(
                Piece(
                    part_path=path,
                    rows=tuple(position for _, position in rows),
                    sha256=sha256[path],
                )
                for path, rows in groupby(of_shard, key=itemgetter(0))
            ),
        )
        for group, of_group in places.items()
        for of_shard in chunked(of_group, samples_per_shard)
    ]
    return sorted(tasks, key=lambda task: task.stem)


def pack_shard(
    dataset: Dataset, task: ShardTask, *, targets: Sequence[str], encoder: str
) -> ShardFile:
    """Writes one shard from its pieces."""

    def take(piece: Piece) -> pa.Table:
        # In the reading thread, so that only the rows of this shard wait in memory.
        rows = dataset.read_table(piece.part_path, sha256=piece.sha256)
        return rows.take(pa.array(piece.rows, pa.int64()))

    return write_shard(
        dataset,
        pa.concat_tables(storage.map_ahead(take, task.pieces)),
        stem=task.stem,
        targets=targets,
        encoder=encoder,
        round_number=task.round,
    )
