"""What is fixed before a source is built: the reference bank, a pilot, and the plan from it."""

import functools
import logging
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import manifest, storage
from pipeline.cluster import Cluster
from pipeline.config import Config, SourceEntry, fingerprint
from pipeline.errors import InfinegError
from pipeline.parts import PartitionTask, PartitionWorker
from pipeline.plan import Planned, choose_partitions, make_plan, pilot_sample, pilot_size
from pipeline.progress import Progress
from pipeline.records import Partition, ReferenceInfo, SourcePlan
from pipeline.reference import write_reference
from pipeline.sources import open_source

_log = logging.getLogger(__name__)
_MakeWorker = functools.partial[PartitionWorker]


def plan_sources(
    config: Config, entries: Sequence[SourceEntry], cluster: Cluster, make_worker: _MakeWorker
) -> list[Planned]:
    """Plans of all entries, fitted where there is none yet."""
    root = config.output.path
    reference = manifest.read_reference_info(root) or _make_reference(config, cluster, make_worker)
    chosen = {}
    for entry in entries:
        source = open_source(entry.kind, entry.params)
        chosen[entry.name] = choose_partitions(source, entry, config)
    plans = {entry.name: _read_plan(config, entry, chosen[entry.name][0]) for entry in entries}
    pilots = _run_pilots(
        config,
        [(e, chosen[e.name][0]) for e in entries if plans[e.name] is None],
        cluster,
        make_worker,
    )
    planned = []
    for entry in entries:
        partitions, stride = chosen[entry.name]
        plan = plans[entry.name]
        if plan is None:
            plan = make_plan(
                entry,
                config=config,
                partitions=partitions,
                stride=stride,
                pilot=pilots[entry.name],
                reference=reference,
            )
            storage.remove_tree(storage.join(root, "parts", entry.name))
            manifest.write_plan(root, plan)
        planned.append(Planned(entry, plan, partitions))
    return planned


def _read_plan(
    config: Config, entry: SourceEntry, partitions: Sequence[Partition]
) -> SourcePlan | None:
    """The plan that an earlier run committed, unless the entry has been changed since."""
    plan = manifest.read_plan(config.output.path, entry.name)
    if plan is None or plan.fingerprint != fingerprint(config.source_inputs(entry)):
        return None
    if plan.num_partitions != len(partitions):
        raise InfinegError(
            f"source {entry.name!r} was planned with {plan.num_partitions:,} partitions and has "
            f"{len(partitions):,} now. Restore it, or remove plans/{entry.name}.json in "
            f"{config.output.path} to begin this source anew."
        )
    return plan


def _make_reference(config: Config, cluster: Cluster, make_worker: _MakeWorker) -> ReferenceInfo:
    """Embeds the positives and fixes the reference bank."""
    tasks = []
    for entry in config.positives:
        partitions, _ = choose_partitions(open_source(entry.kind, entry.params), entry, config)
        tasks += [PartitionTask(source=entry.name, partition=p) for p in partitions]
    total = sum(task.partition.num_samples or 0 for task in tasks)
    tables = []
    with Progress("embed positives", total=total, unit="images") as progress:
        for rows in cluster.map(PartitionWorker.embed, tasks, make_worker=make_worker):
            tables.append(rows.filter(rows["reject_reason"].is_null()))
            progress.advance(rows.num_rows)
    if not tables:
        raise InfinegError("positives: no image could be read")
    info = write_reference(
        config.output.path,
        pa.concat_tables(tables),
        num_neighbors=config.selection.num_neighbors,
    )
    _log.info(
        "committed reference bank: %s embeddings of %s positives, median similarity %.3f, "
        "suspected above %.3f",
        f"{info.num_embeddings:,}",
        f"{info.num_positives:,}",
        info.median,
        info.ceiling,
    )
    return info


def _run_pilots(
    config: Config,
    partitions: Sequence[tuple[SourceEntry, list[Partition]]],
    cluster: Cluster,
    make_worker: _MakeWorker,
) -> dict[str, pa.Table]:
    """Pilot rows by source."""
    tasks = [
        PartitionTask(source=entry.name, partition=partition, limit=limit)
        for entry, of_entry in partitions
        for partition, limit in pilot_sample(of_entry, pilot_size(entry, config.selection))
    ]
    total = sum(min(t.limit or 0, t.partition.num_samples or t.limit or 0) for t in tasks)
    tables: list[pa.Table] = []
    with Progress("pilot", total=total, unit="candidates") as progress:
        for rows in cluster.map(PartitionWorker.score, tasks, make_worker=make_worker):
            tables.append(rows)
            progress.advance(rows.num_rows)
    if not tables:
        return {}
    pilots = pa.concat_tables(tables)
    return {
        entry.name: pilots.filter(pc.equal(pilots["source"], entry.name)) for entry, _ in partitions
    }
