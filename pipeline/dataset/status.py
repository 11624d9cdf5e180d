"""How far a build has come, wherever it runs: read from the data set that it writes.

Nobody is asked: what is planned, what is committed and who holds the lease all lie there.
"""

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from pipeline import storage
from pipeline.dataset import manifest
from pipeline.dataset.lease import LeaseRecord, read_lease
from pipeline.dataset.metadata import Generation, SourcePlan, SourceRecord

_NUM_TRIES = 3


@dataclass(frozen=True)
class SourceProgress:
    """A source that is not done."""

    name: str
    num_partitions: int  # finished
    num_partitions_planned: int
    num_read: int  # candidates, committed
    num_planned: int  # candidates


@dataclass(frozen=True)
class Running:
    """A build that runs, or that was interrupted."""

    lease: LeaseRecord | None  # None: nobody builds
    sources: tuple[SourceProgress, ...]  # not done; () before anything is planned
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
    """None where nothing is being built, and nothing was left unfinished."""
    for _ in range(_NUM_TRIES - 1):
        # A build packs its parts and removes them while they are read here.
        with contextlib.suppress(FileNotFoundError):
            return _read_running(root)
    return _read_running(root)


def _read_running(root: str) -> Running | None:
    lease = read_lease(root)
    number = manifest.latest_generation_number(root)
    latest = manifest.read_generation(root, number) if number else None
    done = {source.name: source for source in latest.sources} if latest else {}
    planned_at = storage.list_times(storage.join(root, "plans"), (".json",))
    plans = {
        name.removesuffix(".json"): manifest.read_plan(root, name.removesuffix(".json"))
        for name in storage.list_files(storage.join(root, "plans"), (".json",))
    }
    sources, fresh = [], 0
    began = max([lease.acquired_at, *planned_at.values()]) if lease else datetime.now(UTC)
    for name, plan in plans.items():
        if plan is None or name.startswith("."):
            continue
        record = done.get(name)
        if record is not None and record.fingerprint != plan.fingerprint:
            record = None  # drawn anew
        if record is None or record.num_partitions < plan.num_partitions:
            parts = _open_parts(root, name, record, began)
            sources.append(_progress(plan, record, parts))
            fresh += parts.num_fresh
    if lease is None and not sources:
        return None
    rate = None
    if lease is not None:
        fresh += _committed_since(root, latest, began)
        seconds = (datetime.now(UTC) - began).total_seconds()
        rate = fresh / seconds if fresh > 0 and seconds > 0 else None
    return Running(lease, tuple(sources), rate)


class _OpenParts(NamedTuple):
    """What is committed of a source and in no generation yet."""

    num_spans: int  # finished
    num_read: int  # candidates
    num_fresh: int  # of them, since this build began


def _open_parts(root: str, source: str, record: SourceRecord | None, began: datetime) -> _OpenParts:
    folder = f"parts/{source}"
    times = storage.list_times(storage.join(root, folder), (".json",))
    rounds = {int(name.partition("/")[0]) for name in times if "/" in name}
    first = record.num_rounds + 1 if record else 1
    num_spans = num_read = num_fresh = 0
    for number in sorted(rounds):
        if number < first:
            continue
        for part in manifest.iterate_part_records(root, source, number):
            num_spans += part.is_last
            num_read += part.counts.read
            stem = manifest.part_stem(source, number, part.span, part.part)
            time = times.get(f"{stem.removeprefix(folder)[1:]}.json")
            num_fresh += part.counts.read if time and time >= began else 0
    return _OpenParts(num_spans, num_read, num_fresh)


def _progress(plan: SourcePlan, record: SourceRecord | None, parts: _OpenParts) -> SourceProgress:
    before = record.num_partitions if record else 0
    finished = before + parts.num_spans * plan.partitions_per_span
    read = record.counts.read if record else 0
    return SourceProgress(
        name=plan.source,
        num_partitions=min(finished, plan.num_partitions),
        num_partitions_planned=plan.num_partitions,
        num_read=read + parts.num_read,
        num_planned=plan.num_candidates,
    )


def _committed_since(root: str, latest: Generation | None, began: datetime) -> int:
    """Candidates that generations have gained since `began`."""
    if latest is None:
        return 0
    times = storage.list_times(storage.join(root, "generations"), (".json",))
    before = [int(name.removesuffix(".json")) for name, time in times.items() if time < began]
    parent = manifest.read_generation(root, max(before)) if before else None
    return latest.counts.read - (parent.counts.read if parent else 0)
