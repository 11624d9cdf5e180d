"""Committed parts become the shards of a new generation."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

import pyarrow as pa
from pydantic import BaseModel

from pipeline import storage
from pipeline.build.reading import Round
from pipeline.cluster.ray_data import Cluster
from pipeline.config.schema import Config
from pipeline.dataset import manifest
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.metadata import NO_GENERATION, Generation, ShardFile, SourceRecord, add_counts
from pipeline.dataset.shards import sort_files, write_shard
from pipeline.dataset.tables import PartRows, RoundTables, write_tables
from pipeline.errors import InfinegError
from pipeline.telemetry.progress import Progress


def pack_generation(
    config: Config,
    parent: Generation | None,
    rounds: Sequence[Round],
    cluster: Cluster,
    seen: SeenImages,
) -> Generation:
    """Writes the shards and tables of some rounds; returns the generation to commit.

    parent: what goes on beside them, less what they replace. seen: the images of its shards, to
    which those of the rounds are added, so that the next rounds need not read them. Until the
    generation is committed nothing of it counts: a run that is interrupted here writes the same
    files again.
    """
    root = config.output.path
    parent = parent or NO_GENERATION
    sources = {source.name: source for source in parent.sources}
    numbers = dict(parent.next_numbers)
    tasks: list[ShardTask] = []
    for round_ in rounds:
        parts = _ordered_parts(root, round_)
        name = round_.source
        ledger, hashes = f"ledger/{name}", f"hashes/{name}"
        number = numbers.get(ledger, 1)
        numbers[ledger] = numbers[hashes] = number + 1
        tables = write_tables(
            root,
            parts,
            seen,
            ledger_path=f"{ledger}-{number:06d}.parquet",
            hashes_path=f"{hashes}-{number:06d}.parquet",
        )
        of_round = cut_shards(
            tables.parts,
            source=name,
            samples_per_shard=config.output.samples_per_shard,
            round_number=round_.number,
            next_numbers=numbers,
        )
        numbers |= {task.group: task.number + 1 for task in of_round}
        tasks += of_round
        sources[name] = _source_record(round_, tables, sources.get(name))
    files = pack_shards(config, tasks, cluster)
    shards, quarantine = sort_files(files)
    return Generation(
        number=parent.number + 1,
        parent=parent.number or None,
        sources=tuple(sources.values()),
        shards=(*parent.shards, *shards),
        quarantine=(*parent.quarantine, *quarantine),
        next_numbers=dict(sorted(numbers.items())),
        taken_down=parent.taken_down,
        mined=parent.mined,
    )


def without_sources(generation: Generation, names: Set[str]) -> Generation:
    """The same without some sources; their files stay, for the generations that list them."""
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


def _ordered_parts(root: str, round_: Round) -> list[str]:
    """Paths of all parts of a round in the order of its spans; raises where one is missing."""
    paths: list[str] = []
    span = part = 0
    for record in manifest.iterate_part_records(root, round_.source, round_.number):
        if (record.span, record.part) != (span, part):
            break
        paths.append(record.path)
        span, part = (span + 1, 0) if record.is_last else (span, part + 1)
        if span == round_.num_spans:
            return paths
    raise InfinegError(
        f"source {round_.source!r}: part {part} of span {span} of round {round_.number} is not "
        "committed though its worker ended; run again"
    )


class Piece(BaseModel, frozen=True):
    """Rows of a part, by position."""

    part_path: str
    rows: tuple[int, ...]


class ShardTask(BaseModel, frozen=True):
    """One shard to write: `group` is its path without the number and suffix."""

    source: str
    round: int
    group: str
    number: int
    pieces: tuple[Piece, ...]

    @property
    def stem(self) -> str:
        return f"{self.group}-{self.number:06d}"


def pack_shards(config: Config, tasks: Sequence[ShardTask], cluster: Cluster) -> list[ShardFile]:
    """Writes shards on all workers; returns them in the order of their paths."""
    info = manifest.require_info(config.output.path)
    method = functools.partial(
        _pack_one, root=config.output.path, targets=info.targets, encoder=info.encoder
    )
    open_storage = functools.partial(storage.configure, config.storage)
    files = []
    with Progress("pack", total=len(tasks), unit="shards") as progress:
        for table in cluster.map(method, tasks, make_worker=open_storage):
            files.append(ShardFile.model_validate_json(table["record"][0].as_py()))
            progress.advance()
    return sorted(files, key=lambda file: file.path)


def _pack_one(
    _: None, task: ShardTask, *, root: str, targets: Sequence[str], encoder: str
) -> Iterator[pa.Table]:
    file = pack_shard(root, task, targets=targets, encoder=encoder)
    yield pa.table({"record": [file.model_dump_json()]})


def _source_record(round_: Round, tables: RoundTables, before: SourceRecord | None) -> SourceRecord:
    """The source's record with one round more."""
    return SourceRecord(
        name=round_.source,
        fingerprint=round_.planned.plan.fingerprint,
        role=round_.planned.plan.role,
        num_rounds=round_.number,
        num_partitions=round_.last,
        counts=add_counts([before.counts, tables.counts] if before else [tables.counts]),
        ledger=(*(before.ledger if before else ()), tables.ledger),
        hashes=(*(before.hashes if before else ()), tables.hashes),
    )


def cut_shards(
    parts: Iterable[PartRows],
    *,
    source: str,
    samples_per_shard: int,
    round_number: int,
    next_numbers: Mapping[str, int],
) -> list[ShardTask]:
    """Cuts the rows of each output group, in the order of `parts`, every `samples_per_shard`.

    Shards are numbered from `next_numbers` of their group on.
    """
    tasks: list[ShardTask] = []
    open_pieces: dict[str, list[Piece]] = {}
    sizes: dict[str, int] = {}
    numbers = dict(next_numbers)

    def close(group: str) -> None:
        number = numbers.get(group, 0)
        pieces = tuple(open_pieces.pop(group))
        tasks.append(
            ShardTask(source=source, round=round_number, group=group, number=number, pieces=pieces)
        )
        numbers[group], sizes[group] = number + 1, 0

    for part in parts:
        for group, positions in part.rows.items():
            start = 0
            while start < len(positions):
                stop = min(len(positions), start + samples_per_shard - sizes.get(group, 0))
                piece = Piece(part_path=part.path, rows=tuple(positions[start:stop]))
                open_pieces.setdefault(group, []).append(piece)
                sizes[group] = sizes.get(group, 0) + stop - start
                start = stop
                if sizes[group] == samples_per_shard:
                    close(group)
    for group in sorted(open_pieces):
        close(group)
    return sorted(tasks, key=lambda task: task.stem)


def pack_shard(root: str, task: ShardTask, *, targets: Sequence[str], encoder: str) -> ShardFile:
    """Writes one shard from its pieces."""

    def take(piece: Piece) -> pa.Table:
        # In the thread that reads: what waits for its turn is the rows of this shard alone.
        return manifest.read_table(root, piece.part_path).take(pa.array(piece.rows, pa.int64()))

    return write_shard(
        root,
        pa.concat_tables(storage.map_ahead(take, task.pieces)),
        stem=task.stem,
        targets=targets,
        encoder=encoder,
        round_number=task.round,
    )
