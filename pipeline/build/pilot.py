"""What is fixed before a source is built: the reference bank, a pilot, and the plan from it."""

import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
from more_itertools import ilen

from pipeline import storage
from pipeline.build.declared import check_labels
from pipeline.build.file_tables import list_files, remove_other_files, write_files
from pipeline.build.pooled_sources import find_spans
from pipeline.build.reading import PlannedSource
from pipeline.cluster.workers import Cluster
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation, ReferenceInfo, SourcePlan, TableRecord
from pipeline.dataset.seen_labels import LabelCounter
from pipeline.errors import InfinegError
from pipeline.selection.fit import Fitted, pilot_needed
from pipeline.selection.pilot import Pilot, make_pilot, pilot_sample
from pipeline.selection.plan import draw_of, fit_pool, is_raised, make_plan, plan_fingerprint
from pipeline.selection.reference import write_reference
from pipeline.sources import Source, StoredSource, open_entry
from pipeline.sources.survey import (
    Listing,
    estimate_sizes,
    refuse_changed_listing,
    survey,
    take_partitions,
)
from pipeline.telemetry.progress import Progress
from pipeline.worker.rejects import refuse_unusable
from pipeline.worker.span import ReadTask, SpanWorker, seen_in

_log = logging.getLogger(__name__)
# Samples to read on, in every eighth partition of a pilot, if the source does not say how many
# there are: it distinguishes small partitions, which are read together, from large ones.
_MAX_COUNTED = 256
MakeWorker = functools.partial[SpanWorker]


@dataclass(frozen=True)
class Surveyed:
    """A source whose pilot is to be read."""

    entry: SourceEntry
    source: Source
    listing: Listing
    # Spans of the pool in which the partitions of its pilot are, by their ids.
    pooled: Mapping[str, str] = field(default_factory=dict)

    def tasks(self) -> list[ReadTask]:
        sample = pilot_sample(self.listing.examples, self.listing.num_pilot)
        return [
            ReadTask(
                source=self.entry.name,
                partitions=(partition,),
                limit=limit,
                num_counted=0 if number % 8 or self.listing.can_tell_sizes else _MAX_COUNTED,
                pooled_in=self.pooled.get(partition.id, ""),
            )
            for number, (partition, limit) in enumerate(sample)
        ]


def plan_sources(
    config: Config,
    entries: Sequence[SourceEntry],
    latest: Generation,
    cluster: Cluster,
    make_worker: MakeWorker,
) -> list[PlannedSource]:
    """Plans of all entries, made where there is none yet, and how much of each is committed."""
    dataset = Dataset(config.output.path)
    reference = dataset.read_reference()
    if reference is None or not reference.is_current:
        draw = reference.draw if reference else 0
        reference = _make_reference(config, cluster, make_worker, draw)
    files: dict[str, str] = {}
    planned: dict[str, PlannedSource] = {}
    surveyed: list[Surveyed] = []
    for entry in entries:
        source = open_entry(entry, config.role_of(entry))
        plan = _read_plan(dataset, config, entry, source, reference)
        if plan is None:
            if config.role_of(entry) == "negative":  # those of positives are listed by the bank
                files |= _record_files(dataset, entry, source)
            listing = survey(source, entry, config)
            pooled = find_spans(config, entry, source, listing.examples)
            surveyed.append(Surveyed(entry, source, listing, pooled))
        else:
            planned[entry.name] = PlannedSource(entry, source, plan)
    run = functools.partial(_run_pilots, config, reference, cluster, make_worker)
    pilots = run(surveyed)
    too_small = _too_small(surveyed, pilots, config, reference)
    larger = {pilot.entry.name: pilot for pilot in run(too_small)}
    pilots = [_with_sizes(larger.get(pilot.entry.name, pilot)) for pilot in pilots]
    fits = _fit_pool(dataset, pilots, config, reference)
    for pilot in pilots:
        name = pilot.entry.name
        plan = _commit_plan(
            dataset, pilot, config, reference, files=files.get(name, ""), fit=fits.get(name)
        )
        planned[name] = PlannedSource(pilot.entry, pilot.source, plan)
    committed = {record.name: record for record in latest.sources}
    return [planned[entry.name].resumed(committed.get(entry.name)) for entry in entries]


def _read_plan(
    dataset: Dataset,
    config: Config,
    entry: SourceEntry,
    source: Source,
    reference: ReferenceInfo,
) -> SourcePlan | None:
    """The plan that an earlier run committed, unless the entry has been changed since."""
    plan = dataset.read_plan(entry.name)
    wanted = plan_fingerprint(config, entry, draw_of(plan, reference))
    if plan is None or plan.fingerprint != wanted:
        return None
    if plan.num_listed is not None and not isinstance(source, StoredSource):
        num_now = ilen(source.partitions())
        if num_now != plan.num_listed:
            raise refuse_changed_listing(plan, num_now)
    return plan


def _record_files(dataset: Dataset, entry: SourceEntry, source: Source) -> dict[str, str]:
    """Keeps what files the source has before one of them is read; {} if it reads none."""
    files = list_files(source)
    return {} if files is None else {entry.name: write_files(dataset, entry.name, files)}


def _with_sizes(pilot: Pilot) -> Pilot:
    return replace(pilot, listing=estimate_sizes(pilot.listing, pilot.source, pilot.rows))


def _fit_pool(
    dataset: Dataset, pilots: Sequence[Pilot], config: Config, reference: ReferenceInfo
) -> dict[str, Fitted]:
    """The probabilities of sources that share one budget, by name; {} if each has its own."""
    if config.selection.pool == "source":
        return {}
    own = [pilot for pilot in pilots if config.role_of(pilot.entry) == "negative"]
    planned = []
    for entry in config.sources:
        plan = dataset.read_plan(entry.name)
        wanted = plan_fingerprint(config, entry, draw_of(plan, reference))
        if plan is not None and plan.fingerprint == wanted:
            planned.append((entry, plan))
    fits = fit_pool(own, planned, config=config, reference=reference)
    return {pilot.entry.name: fit for pilot, fit in zip(own, fits, strict=True)}


def _commit_plan(
    dataset: Dataset,
    pilot: Pilot,
    config: Config,
    reference: ReferenceInfo,
    *,
    files: str,
    fit: Fitted | None,
) -> SourcePlan:
    """Plans a source and removes parts that were read by an earlier plan.

    fit: its probabilities, if it shares its budget with others.
    """
    previous = dataset.read_plan(pilot.entry.name)
    plan = make_plan(pilot, config=config, reference=reference, previous=previous, fit=fit)
    smaller = _ledgers_before(dataset, plan, previous) if config.adds_hardest(pilot.entry) else ()
    plan = plan.model_copy(update={"files": files, "smaller": smaller})
    storage.remove_tree(dataset.uri(f"parts/{plan.source}"))
    dataset.write_plan(plan)
    if files:
        remove_other_files(dataset, plan.source, files)
    return plan


def _ledgers_before(
    dataset: Dataset, plan: SourcePlan, previous: SourcePlan | None
) -> tuple[TableRecord, ...]:
    """Where the source was asked for less before: the ledgers that say what it had."""
    if previous is None or not is_raised(previous, plan.source_fingerprint, plan.num_wanted):
        return ()
    committed = {record.name: record for record in dataset.read_latest().sources}
    record = committed.get(plan.source)
    if record is None or record.fingerprint != previous.fingerprint:
        return previous.smaller  # nothing of the previous plan was committed
    is_whole = record.num_partitions >= previous.num_partitions
    return (*(() if is_whole else previous.smaller), *record.ledger)


def _too_small(
    surveyed: Sequence[Surveyed],
    pilots: Sequence[Pilot],
    config: Config,
    reference: ReferenceInfo,
) -> list[Surveyed]:
    """Sources that need a larger pilot, each with the number of candidates that it needs."""
    return [
        replace(each, listing=replace(pilot.listing, num_pilot=needed))
        for each, pilot in zip(surveyed, pilots, strict=True)
        for needed in [pilot_needed(pilot, config=config, reference=reference)]
        if needed > pilot.listing.num_pilot
    ]


def _run_pilots(
    config: Config,
    reference: ReferenceInfo,
    cluster: Cluster,
    make_worker: MakeWorker,
    surveyed: Sequence[Surveyed],
) -> list[Pilot]:
    """Reads the pilots of all sources together, in the order given."""
    tasks = [task for source in surveyed for task in source.tasks()]
    if not tasks:
        return []
    total = sum(min(t.limit or 0, t.num_samples or t.limit or 0) for t in tasks)
    tables: list[pa.Table] = []
    with Progress("pilot", total=total, unit="candidates") as progress:
        for rows in cluster.map(SpanWorker.score, tasks, make_worker=make_worker):
            tables.append(rows)
            progress.advance(rows.num_rows)
    rows = pa.concat_tables(tables)
    return [
        make_pilot(
            each.entry,
            each.source,
            each.listing,
            rows.filter(pc.equal(rows["source"], each.entry.name)),
            config=config,
            reference=reference,
        )
        for each in surveyed
    ]


def _make_reference(
    config: Config, cluster: Cluster, make_worker: MakeWorker, draw: int
) -> ReferenceInfo:
    """Embeds the positives and commits the reference bank.

    Raises ConfigError if a label that one of them declares never occurred.
    """
    sources = {entry.name: open_entry(entry, "positive") for entry in config.positives}
    dataset = Dataset(config.output.path)
    files: dict[str, str] = {}
    tasks = []
    for entry in config.positives:
        source = sources[entry.name]
        files |= _record_files(dataset, entry, source)
        listing = survey(source, entry, config)
        tasks += [
            ReadTask(source=entry.name, partitions=(partition,))
            for partition in take_partitions(source, listing.num_partitions, listing.num_listed)
        ]
    total = sum(task.num_samples for task in tasks)
    tables = []
    seen = {name: LabelCounter() for name in sources}
    with Progress("embed positives", total=total, unit="images") as progress:
        for rows in cluster.map(SpanWorker.embed, tasks, make_worker=make_worker):
            name, labels = seen_in(rows)
            seen[name].update(labels)
            tables.append(rows)
            progress.advance(rows.num_rows)
    for entry in config.positives:
        check_labels(entry, sources[entry.name], seen[entry.name].seen())
    if not any(rows.num_rows for rows in tables):
        raise InfinegError("positives: no image could be read")
    embedded = pa.concat_tables(tables)
    for entry in config.positives:
        _refuse_unusable(entry.name, embedded.filter(pc.equal(embedded["source"], entry.name)))
    info = write_reference(
        config.output.path,
        embedded.filter(embedded["reject_reason"].is_null()),
        num_neighbors=config.selection.num_neighbors,
        draw=draw,
        files=files,
    )
    for name, path in files.items():
        remove_other_files(dataset, name, path)
    _log.info(
        "committed reference bank: %s embeddings of %s positives, median similarity %.3f, "
        "suspected above %.3f",
        f"{info.num_embeddings:,}", f"{info.num_positives:,}", info.median, info.ceiling,
    )  # fmt: skip
    return info


def _refuse_unusable(source: str, rows: pa.Table) -> None:
    rejected = Counter(reason for reason in rows["reject_reason"].to_pylist() if reason)
    example = rows["uri"][0].as_py() if rows.num_rows else ""
    refuse_unusable(source, rows.num_rows, rejected, example)
