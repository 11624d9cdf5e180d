"""Committed parts become the shards of a new generation."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline import manifest, storage
from pipeline.cluster import Cluster
from pipeline.config import Config
from pipeline.errors import InfinegError
from pipeline.pack import ShardTask, cut_shards, pack_ledger, pack_shard
from pipeline.plan import Planned
from pipeline.progress import Progress
from pipeline.records import (
    Generation,
    LedgerRecord,
    PartRecord,
    ShardFile,
    ShardRecord,
    SourceRecord,
    add_counts,
)
from pipeline.shards import parse_group


def pack_generation(config: Config, planned: Sequence[Planned], cluster: Cluster) -> Generation:
    """Writes the shards and ledgers of the planned sources; returns the generation to commit.

    Until it is committed nothing of it counts: a run that is interrupted here writes the same
    files again.
    """
    root = config.output.path
    number = manifest.latest_generation_number(root)
    parent = manifest.read_generation(root, number) if number else None
    old_shards = parent.shards if parent else ()
    old_quarantine = parent.quarantine if parent else ()
    num_before = Counter(file.path.rpartition("-")[0] for file in (*old_shards, *old_quarantine))
    tasks: list[ShardTask] = []
    records = []
    for source in planned:
        parts = _ordered_parts(root, source)
        tasks += cut_shards(
            parts,
            samples_per_shard=config.output.samples_per_shard,
            round_number=source.plan.round,
            num_before=num_before,
        )
        ledger = pack_ledger(root, source.entry.name, parts, round_number=source.plan.round)
        records.append(_source_record(source, parts, ledger))
    files = _pack_shards(config, tasks, cluster)
    shards = [_shard_record(file) for file in files if file.path.startswith("shards/")]
    quarantine = [file for file in files if file.path.startswith("quarantine/")]
    return Generation(
        number=number + 1,
        parent=number or None,
        sources=(*(parent.sources if parent else ()), *records),
        shards=(*old_shards, *shards),
        quarantine=(*old_quarantine, *quarantine),
    )


def sweep(root: str, sources: Sequence[str]) -> None:
    """Removes output of `sources` that no generation lists: interrupted runs left it behind."""
    listed = set()
    for number in range(1, manifest.latest_generation_number(root) + 1):
        generation = manifest.read_generation(root, number)
        for file in (*generation.shards, *generation.quarantine):
            listed |= {file.path, file.sidecar_path}
        listed |= {ledger.path for source in generation.sources for ledger in source.ledger}
    for folder in ("shards", "quarantine", "ledger"):
        for name in storage.list_files(storage.join(root, folder)):
            owner = name.rpartition("/")[2].partition("-")[0]
            if owner in (*sources, ".tmp") and f"{folder}/{name}" not in listed:
                storage.remove_tree(storage.join(root, folder, name))
    for source in sources:
        storage.remove_tree(storage.join(root, "parts", source))


def _ordered_parts(root: str, source: Planned) -> list[PartRecord]:
    """All parts of a source in the order of its partitions; asserts that none is missing."""
    name = source.entry.name
    committed = manifest.read_part_records(root, name)
    ordered: list[PartRecord] = []
    for partition in source.partitions:
        part = 0
        while not ordered or ordered[-1].partition != partition.id or not ordered[-1].is_last:
            record = committed.get((partition.id, part))
            if record is None:
                raise InfinegError(
                    f"source {name!r}: part {part} of partition {partition.id} is not committed "
                    "though its worker ended; run again"
                )
            ordered.append(record)
            part += 1
    return ordered


def _pack_shards(config: Config, tasks: Sequence[ShardTask], cluster: Cluster) -> list[ShardFile]:
    info = manifest.require_info(config.output.path)
    method = functools.partial(
        _pack_one, root=config.output.path, targets=info.targets, encoder=info.encoder
    )
    files = []
    with Progress("pack", total=len(tasks), unit="shards") as progress:
        for table in cluster.map(method, tasks, make_worker=_no_worker):
            files.append(ShardFile.model_validate_json(table["record"][0].as_py()))
            progress.advance()
    return sorted(files, key=lambda file: file.path)


def _no_worker() -> None:
    """Packing needs nothing that is costly to make."""


def _pack_one(
    _: None, task: ShardTask, *, root: str, targets: Sequence[str], encoder: str
) -> Iterator[pa.Table]:
    file = pack_shard(root, task, targets=targets, encoder=encoder)
    yield pa.table({"record": [file.model_dump_json()]})


def _shard_record(file: ShardFile) -> ShardRecord:
    split, label = parse_group(file.path.rpartition("-")[0])
    return ShardRecord(**file.model_dump(), split=split, label=label)


def _source_record(
    source: Planned, parts: Sequence[PartRecord], ledger: LedgerRecord
) -> SourceRecord:
    return SourceRecord(
        name=source.entry.name,
        round=source.plan.round,
        fingerprint=source.plan.fingerprint,
        role=source.plan.role,
        num_partitions=len(source.partitions),
        counts=add_counts(part.counts for part in parts),
        ledger=(ledger,),
    )
