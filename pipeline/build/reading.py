"""The order of a build: which rounds make a generation, and which spans are read."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from more_itertools import chunked, peekable

from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import SourcePlan, SourceRecord
from pipeline.dataset.schema import Partition
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources import Source
from pipeline.sources.survey import refuse_changed_listing, take_partitions
from pipeline.telemetry.progress import Progress
from pipeline.worker.span import ReadTask

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedSource:
    """A source to build, and how much of its plan is committed already."""

    entry: SourceEntry
    source: Source
    plan: SourcePlan
    num_rounds: int = 0
    num_partitions: int = 0

    def resumed(self, record: SourceRecord | None) -> "PlannedSource":
        """The same after what a generation has of it, unless that follows another plan."""
        if record is None or record.fingerprint != self.plan.fingerprint:
            return self
        return replace(self, num_rounds=record.num_rounds, num_partitions=record.num_partitions)

    def rounds(self) -> "Iterator[Round]":
        """The rest of the plan, cut into rounds."""
        first, number = self.num_partitions, self.num_rounds + 1
        while first < self.plan.num_partitions:
            last = min(first + self.plan.partitions_per_round, self.plan.num_partitions)
            yield Round(self, number, first, last)
            first, number = last, number + 1


@dataclass(frozen=True)
class Round:
    """Partitions `first` to `last` of a source's plan, packed and committed together."""

    planned: PlannedSource
    number: int  # 1 for the source's first
    first: int
    last: int

    @property
    def source(self) -> str:
        return self.planned.entry.name

    @property
    def num_spans(self) -> int:
        return -(-(self.last - self.first) // self.planned.plan.partitions_per_span)

    @property
    def num_candidates(self) -> int:
        return round((self.last - self.first) * self.planned.plan.samples_per_partition)


class Reading:
    """One pass over the planned sources: every span once, in the order of the config.

    A source is finished before the next one begins, so that which of two duplicates is kept does
    not depend on whether sources are built together or one by one.
    """

    def __init__(
        self, config: Config, planned: Sequence[PlannedSource], progress: Progress
    ) -> None:
        self._dataset = Dataset(config.output.path)
        self._candidates_per_round = config.output.candidates_per_round
        self._planned = planned
        self._progress = progress
        # Opened once, so that a listing is not read again for every round.
        self._spans = {source.entry.name: iterate_spans(source) for source in planned}

    def batches(self) -> Iterator[list[Round]]:
        """The rounds of one generation at a time: as many as reach `candidates_per_round`."""
        batch: list[Round] = []
        for source in self._planned:
            for round_ in source.rounds():
                batch.append(round_)
                if sum(each.num_candidates for each in batch) >= self._candidates_per_round:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def tasks(self, rounds: Sequence[Round]) -> Iterator[ReadTask]:
        """The spans of some rounds that are not committed."""
        for round_ in rounds:
            name = round_.source
            ids, finished = self._committed(round_)
            for span in range(round_.num_spans):
                partitions = next(self._spans[name])
                task = ReadTask(source=name, partitions=partitions, round=round_.number, span=span)
                if ids.get(span, task.span_id) != task.span_id:
                    raise InfinegError(
                        f"source {name!r}: partition {partitions[0].id} is not the one that was "
                        "there when a part of it was committed. Restore the source, or remove "
                        f"plans/{name}.json of the data set to start this source again."
                    )
                if span not in finished:
                    yield task

    def _committed(self, round_: Round) -> tuple[dict[int, str], set[int]]:
        """Ids of the spans with a committed part, and the spans whose last part is committed."""
        ids: dict[int, str] = {}
        finished: set[int] = set()
        num_parts = num_read = 0
        for record in self._dataset.iterate_parts(round_.source, round_.number):
            ids[record.span] = record.span_id
            if record.is_last:
                finished.add(record.span)
            num_parts += 1
            num_read += record.counts.read
        if num_parts:
            _log.info("resuming: %s parts are committed already", f"{num_parts:,}")
            self._progress.expect_less(num_read)
        return ids, finished


class Spans:
    """The spans of planned sources again, in another pass over each listing, as far as needed."""

    def __init__(self, planned: Sequence[PlannedSource]) -> None:
        self._planned = {source.entry.name: source for source in planned}
        self._spans = {
            source.entry.name: peekable(enumerate(iterate_spans(source))) for source in planned
        }

    def find(self, round_: Round, span: int) -> tuple[Partition, ...]:
        """Partitions of a span of a round; to be asked for in the order of the build."""
        planned = self._planned[round_.source]
        first = (round_.first - planned.num_partitions) // planned.plan.partitions_per_span
        spans = self._spans[round_.source]
        while spans.peek()[0] < first + span:
            next(spans)
        number, partitions = spans.peek()
        assert number == first + span, "spans are asked for in order"
        return partitions


def extend_plans(dataset: Dataset, planned: Sequence[PlannedSource]) -> list[PlannedSource]:
    """Extends the plan of every endless source by one budget, after all of it is committed.

    Raises ConfigError if no source is endless.
    """
    extended = []
    for source in planned:
        if source.source.is_endless and source.plan.role == "negative":
            num_before = source.plan.num_partitions
            num_after = num_before + source.plan.partitions_per_budget
            plan = source.plan.model_copy(update={"num_partitions": num_after})
            dataset.write_plan(plan)
            num_rounds = source.num_rounds + sum(1 for _ in source.rounds())
            extended.append(
                replace(source, plan=plan, num_rounds=num_rounds, num_partitions=num_before)
            )
    if not extended:
        raise ConfigError("--follow: every source ends by itself, there is nothing to follow")
    return extended


def iterate_spans(planned: PlannedSource) -> Iterator[tuple[Partition, ...]]:
    """The partitions that are not committed, a task's worth at a time, in the source's order.

    Raises InfinegError if the source lists fewer than when it was planned.
    """
    plan, num_taken = planned.plan, planned.num_partitions
    taken = take_partitions(planned.source, plan.num_partitions, plan.num_listed)
    for partitions in chunked(itertools.islice(taken, num_taken, None), plan.partitions_per_span):
        num_taken += len(partitions)
        yield tuple(partitions)
    if num_taken < plan.num_partitions:
        raise refuse_changed_listing(plan, num_taken)
