"""How far a build has come, wherever it runs.

Read from the data set: its plans, its committed parts and generations, and its lease.
"""

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline import storage
from pipeline.dataset.dataset import Dataset, part_stem
from pipeline.dataset.lease import LeaseRecord, read_lease
from pipeline.dataset.metadata import NO_GENERATION, Generation, SourcePlan, SourceRecord

_NUM_TRIES = 3


@dataclass(frozen=True)
class SourceProgress:
    """A source that is not finished."""

    name: str
    num_partitions: int  # finished
    num_partitions_planned: int
    num_read: int  # candidates, committed
    num_planned: int  # candidates


@dataclass(frozen=True)
class Running:
    """A build that is running or was interrupted."""

    lease: LeaseRecord | None  # None if no build is running
    sources: tuple[SourceProgress, ...]  # not finished; () before anything is planned
    candidates_per_second: float | None  # committed, since this build began to read

    @property
    def is_alive(self) -> bool:
        return self.lease is not None and not self.lease.is_free

    @property
    def num_left(self) -> int:
        """Candidates."""
        return sum(max(source.num_planned - source.num_read, 0) for source in self.sources)

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far."""
        rate = self.candidates_per_second
        return self.num_left / rate if rate and self.is_alive else None


def read_running(root: str) -> Running | None:
    """None if no build is running and none was left unfinished."""
    for _ in range(_NUM_TRIES - 1):
        # A running build packs its parts and removes them while they are read here.
        with contextlib.suppress(FileNotFoundError):
            return _read_running(root)
    return _read_running(root)


def _read_running(root: str) -> Running | None:
    dataset = Dataset(root)
    lease = read_lease(root)
    latest = dataset.read_latest()
    done = {source.name: source for source in latest.sources}
    planned_at = storage.list_times(dataset.uri("plans"), (".json",))
    began = max([lease.acquired_at, *planned_at.values()]) if lease else datetime.now(UTC)
    sources, num_fresh = [], 0
    for file_name in storage.list_files(dataset.uri("plans"), (".json",)):
        plan = dataset.read_plan(file_name.removesuffix(".json"))
        if plan is None or file_name.startswith("."):
            continue
        record = done.get(plan.source)
        if record is not None and record.fingerprint != plan.fingerprint:
            record = None  # it is being built again with other settings
        if record is None or record.num_partitions < plan.num_partitions:
            progress, num_read = _read_progress(dataset, plan, record, began)
            sources.append(progress)
            num_fresh += num_read
    if lease is None:
        return Running(None, tuple(sources), None) if sources else None
    num_fresh += _committed_since(dataset, latest, began)
    seconds = (datetime.now(UTC) - began).total_seconds()
    rate = num_fresh / seconds if num_fresh > 0 and seconds > 0 else None
    return Running(lease, tuple(sources), rate)


def _read_progress(
    dataset: Dataset, plan: SourcePlan, record: SourceRecord | None, began: datetime
) -> tuple[SourceProgress, int]:
    """The progress of a source, and how many candidates were read since `began`.

    record: what is in a generation of it; the rest are committed parts.
    """
    folder = f"parts/{plan.source}"
    times = storage.list_times(dataset.uri(folder), (".json",))
    rounds = {int(name.partition("/")[0]) for name in times if "/" in name}
    num_rounds, num_partitions, num_read = 0, 0, 0
    if record is not None:
        num_rounds, num_partitions = record.num_rounds, record.num_partitions
        num_read = record.counts.read
    num_fresh = 0
    for number in sorted(number for number in rounds if number > num_rounds):
        for part in dataset.iterate_parts(plan.source, number):
            num_partitions += part.is_last * plan.partitions_per_span
            num_read += part.counts.read
            time = times.get(part_stem(part, part.part).removeprefix(f"{folder}/") + ".json")
            num_fresh += part.counts.read if time and time >= began else 0
    progress = SourceProgress(
        name=plan.source,
        num_partitions=min(num_partitions, plan.num_partitions),
        num_partitions_planned=plan.num_partitions,
        num_read=num_read,
        num_planned=plan.num_candidates,
    )
    return progress, num_fresh


def _committed_since(dataset: Dataset, latest: Generation, began: datetime) -> int:
    """Candidates that generations have gained since `began`."""
    times = storage.list_times(dataset.uri("generations"), (".json",))
    before = [int(name.removesuffix(".json")) for name, time in times.items() if time < began]
    parent = dataset.read_generation(max(before)) if before else NO_GENERATION
    return latest.counts.read - parent.counts.read
