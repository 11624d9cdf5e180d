"""What is fixed before a source is built: the reference bank, a pilot, and the plan from it."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
from more_itertools import ilen

from pipeline import storage
from pipeline.build.changes import committed_sources
from pipeline.build.reading import PlannedSource
from pipeline.cluster.ray_data import Cluster
from pipeline.config.schema import Config, SourceEntry, fingerprint
from pipeline.dataset import manifest
from pipeline.dataset.metadata import ReferenceInfo, SourcePlan
from pipeline.errors import InfinegError
from pipeline.selection.fit import pilot_needed
from pipeline.selection.pilot import pilot_sample, pilot_stats
from pipeline.selection.plan import make_plan
from pipeline.selection.reference import write_reference
from pipeline.sources import Source, open_entry
from pipeline.sources.survey import (
    Listing,
    estimate_sizes,
    refuse_changed_listing,
    survey,
    take_partitions,
)
from pipeline.telemetry.progress import Progress
from pipeline.worker.span import ReadTask, SpanWorker

_log = logging.getLogger(__name__)
# Samples passed over in every eighth partition of a pilot, where nobody knows how many there are:
# it tells small partitions, which are read together, from large ones.
_MAX_COUNTED = 256
_MakeWorker = functools.partial[SpanWorker]


def plan_sources(
    config: Config, entries: Sequence[SourceEntry], cluster: Cluster, make_worker: _MakeWorker
) -> list[PlannedSource]:
    """Plans of all entries, fitted where there is none yet, and how much of each is committed."""
    root = config.output.path
    reference = manifest.read_reference_info(root) or _make_reference(config, cluster, make_worker)
    sources = {entry.name: open_entry(entry, config.role_of(entry)) for entry in entries}
    plans = {entry.name: _read_plan(config, entry, sources[entry.name]) for entry in entries}
    fresh = [entry for entry in entries if plans[entry.name] is None]
    listings = {entry.name: survey(sources[entry.name], entry, config) for entry in fresh}
    pilots = _run_pilots(fresh, listings, cluster, make_worker)
    larger = _larger_pilots(config, fresh, listings, pilots, reference)
    listings |= larger
    pilots |= _run_pilots([e for e in fresh if e.name in larger], listings, cluster, make_worker)
    committed = committed_sources(root)
    planned = []
    for entry in entries:
        plan = plans[entry.name]
        if plan is None:
            plan = make_plan(
                entry,
                config=config,
                listing=estimate_sizes(
                    listings[entry.name], sources[entry.name], pilots[entry.name]
                ),
                pilot=pilots[entry.name],
                reference=reference,
                previous=manifest.read_plan(root, entry.name),
            )
            storage.remove_tree(storage.join(root, "parts", entry.name))
            manifest.write_plan(root, plan)
        record = committed.get(entry.name)
        if record is None or record.fingerprint != plan.fingerprint:
            planned.append(PlannedSource(entry, sources[entry.name], plan))
        else:
            planned.append(
                PlannedSource(
                    entry, sources[entry.name], plan, record.num_rounds, record.num_partitions
                )
            )
    return planned


def _larger_pilots(
    config: Config,
    entries: Sequence[SourceEntry],
    listings: Mapping[str, Listing],
    pilots: Mapping[str, pa.Table],
    reference: ReferenceInfo,
) -> dict[str, Listing]:
    """Listings of the sources of which the first pilot was too small."""
    larger = {}
    for entry in entries:
        listing = listings[entry.name]
        needed = pilot_needed(
            entry,
            config=config,
            listing=listing,
            findings=pilot_stats(config, listing, pilots[entry.name], reference),
            reference=reference,
        )
        if needed > listing.num_pilot:
            larger[entry.name] = replace(listing, num_pilot=needed)
    return larger


def _read_plan(config: Config, entry: SourceEntry, source: Source) -> SourcePlan | None:
    """The plan that an earlier run committed, unless the entry has been changed since."""
    plan = manifest.read_plan(config.output.path, entry.name)
    if plan is None or plan.fingerprint != fingerprint(config.source_inputs(entry)):
        return None
    if plan.num_listed is not None:
        num_now = ilen(source.partitions())
        if num_now != plan.num_listed:
            raise refuse_changed_listing(plan, num_now)
    return plan


def _make_reference(config: Config, cluster: Cluster, make_worker: _MakeWorker) -> ReferenceInfo:
    """Embeds the positives and fixes the reference bank."""
    tasks = []
    for entry in config.positives:
        source = open_entry(entry, "positive")
        listing = survey(source, entry, config)
        tasks += [
            ReadTask(source=entry.name, partitions=(partition,))
            for partition in take_partitions(source, listing.num_partitions, listing.num_listed)
        ]
    total = sum(task.num_samples for task in tasks)
    tables = []
    with Progress("embed positives", total=total, unit="images") as progress:
        for rows in cluster.map(SpanWorker.embed, tasks, make_worker=make_worker):
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
    entries: Sequence[SourceEntry],
    listings: Mapping[str, Listing],
    cluster: Cluster,
    make_worker: _MakeWorker,
) -> dict[str, pa.Table]:
    """Pilot rows by source."""
    tasks = [
        ReadTask(
            source=entry.name,
            partitions=(partition,),
            limit=limit,
            num_counted=0 if number % 8 or listings[entry.name].can_tell_sizes else _MAX_COUNTED,
        )
        for entry in entries
        for number, (partition, limit) in enumerate(
            pilot_sample(listings[entry.name].examples, listings[entry.name].num_pilot)
        )
    ]
    total = sum(min(t.limit or 0, t.num_samples or t.limit or 0) for t in tasks)
    tables: list[pa.Table] = []
    with Progress("pilot", total=total, unit="candidates") as progress:
        for rows in cluster.map(SpanWorker.score, tasks, make_worker=make_worker):
            tables.append(rows)
            progress.advance(rows.num_rows)
    if not tables:
        return {}
    pilots = pa.concat_tables(tables)
    return {entry.name: pilots.filter(pc.equal(pilots["source"], entry.name)) for entry in entries}
