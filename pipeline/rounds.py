"""The order of a build: which rounds make a generation, and which spans are read."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline import manifest
from pipeline.config import Config
from pipeline.errors import ConfigError, InfinegError
from pipeline.listing import Planned, Round, iterate_spans
from pipeline.parts import SpanTask
from pipeline.telemetry.progress import Progress

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

    def batches(self) -> Iterator[list[Round]]:
        """Rounds of one generation: as many as reach `candidates_per_round`."""
        batch: list[Round] = []
        for source in self._planned:
            for round_ in source.rounds():
                batch.append(round_)
                if sum(each.num_candidates for each in batch) >= self._candidates_per_round:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def tasks(self, rounds: Sequence[Round]) -> Iterator[SpanTask]:
        """The spans of some rounds that are not committed."""
        for round_ in rounds:
            name = round_.source
            ids, finished = self._committed(round_)
            for span in range(round_.num_spans):
                partitions = next(self._spans[name])
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
