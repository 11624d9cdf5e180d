"""The order of a build: which rounds make a generation, which spans are read, and when to stop."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline import manifest
from pipeline.config import Config
from pipeline.errors import ConfigError, InfinegError
from pipeline.listing import Planned, Round, iterate_spans
from pipeline.parts import SpanTask
from pipeline.progress import Progress

_log = logging.getLogger(__name__)


class Reading:
    """One pass over what is planned: every span once, in the order of the config.

    A source is finished before the next one begins, so that what is a duplicate of what does not
    depend on whether sources are built together or one by one.
    """

    def __init__(self, config: Config, planned: Sequence[Planned], progress: Progress) -> None:
        self._root = config.output.path
        self._candidates_per_round = config.output.candidates_per_round
        self._planned = planned
        self._progress = progress
        # Opened once: a listing is not passed over again for every round.
        self._spans = {source.entry.name: iterate_spans(source) for source in planned}
        self._num_taken: Counter[tuple[str, int]] = Counter()
        hours = config.selection.budget.hours
        self._seconds = {
            source.entry.name: hours * 3600 * source.entry.weight
            for source in planned
            if hours is not None and source.plan.role == "negative"
        }
        self._began: dict[str, float] = {}

    def batches(self) -> Iterator[list[Round]]:
        """Rounds of one generation: as many as reach `candidates_per_round`."""
        batch: list[Round] = []
        for source in self._planned:
            for round_ in source.rounds():
                if self._is_over(round_.source):
                    break
                batch.append(round_)
                if sum(each.num_candidates for each in batch) >= self._candidates_per_round:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def tasks(self, rounds: Sequence[Round]) -> Iterator[SpanTask]:
        """The spans of some rounds that are not committed, until the time of their source is up."""
        for round_ in rounds:
            name = round_.source
            ids, finished = self._committed(round_)
            for span in range(round_.num_spans):
                # Not before: what is read together is read one after the other.
                self._began.setdefault(name, time.monotonic())
                if self._is_over(name):
                    break
                partitions = next(self._spans[name])
                self._num_taken[name, round_.number] += 1
                task = SpanTask(source=name, partitions=partitions, round=round_.number, span=span)
                if ids.get(span, task.span_id) != task.span_id:
                    raise InfinegError(
                        f"source {name!r}: partition {partitions[0].id} is not what was there "
                        "when a part of it was committed. Restore the source, or remove "
                        f"plans/{name}.json of the data set to begin this source anew."
                    )
                if span not in finished:
                    yield task

    def _committed(self, round_: Round) -> tuple[dict[int, str], set[int]]:
        """Ids of the spans of which a part is committed, and the spans of which the last one is."""
        ids: dict[int, str] = {}
        finished: set[int] = set()
        num_parts = num_read = 0
        for record in manifest.iterate_part_records(self._root, round_.source, round_.number):
            ids[record.span] = record.span_id
            if record.is_last:
                finished.add(record.span)
            num_parts += 1
            num_read += record.counts.read
        if num_parts:
            _log.info("resuming: %s parts are committed already", f"{num_parts:,}")
            self._progress.expect_less(num_read)
        return ids, finished

    def cut(self, rounds: Sequence[Round]) -> list[Round]:
        """The rounds as far as they were read; a source that ran out of time is done so far."""
        read = []
        for round_ in rounds:
            num_spans = self._num_taken[round_.source, round_.number]
            if num_spans:
                read.append(round_.cut(num_spans))
            if num_spans < round_.num_spans:
                last = round_.cut(num_spans).last
                plan = round_.planned.plan.model_copy(update={"num_partitions": last})
                manifest.write_plan(self._root, plan)
                _log.info("source %s: time is up after %s partitions", round_.source, f"{last:,}")
        return read

    @property
    def is_timed(self) -> bool:
        """Whether the clock may end it, so that it should be asked often."""
        return bool(self._seconds)

    def _is_over(self, source: str) -> bool:
        """Whether the time of a source is up; it begins with the source's first span."""
        seconds = time.monotonic() - self._began.get(source, math.inf)
        return seconds > self._seconds.get(source, math.inf)


def extend_plans(root: str, planned: Sequence[Planned]) -> list[Planned]:
    """Asks for one budget more of every source that never ends; all before is committed.

    Raises ConfigError where no source is endless.
    """
    extended = []
    for source in planned:
        if source.source.is_endless and source.plan.role == "negative":
            committed = manifest.read_plan(root, source.entry.name) or source.plan
            num_before = committed.num_partitions
            num_after = num_before + committed.partitions_per_budget
            plan = committed.model_copy(update={"num_partitions": num_after})
            manifest.write_plan(root, plan)
            num_rounds = source.num_rounds + sum(1 for _ in source.rounds())
            extended.append(
                replace(source, plan=plan, num_rounds=num_rounds, num_partitions=num_before)
            )
    if not extended:
        raise ConfigError("--follow: every source ends by itself, there is nothing to follow")
    return extended
