"""Watches a build from its driver: metrics, and a warning when no part arrives for too long."""

import contextlib
import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from pipeline.dataset.metadata import PartRecord
from pipeline.telemetry.metrics import Metrics
from pipeline.worker.span import ReadTask

_log = logging.getLogger(__name__)

_CHECK_S = 0.5
_UNUSUAL = 5  # times the median time between two parts
_RATE_S = 60.0  # window of the rate
_NUM_NAMED = 4  # spans in a warning

_Span = tuple[str, int, int]  # source, round, number in the round


class BuildMonitor:
    """Keeps track of the spans in flight and of when a part was last committed."""

    def __init__(self, metrics: Metrics, *, stuck_after_s: float) -> None:
        self._metrics = metrics
        self._stuck_after_s = stuck_after_s
        self._lock = threading.Lock()
        self._in_flight: dict[_Span, tuple[ReadTask, float]] = {}
        self._gaps: deque[float] = deque(maxlen=100)  # seconds between parts
        self._read: deque[tuple[float, int]] = deque()  # when, and how many candidates
        self._last = self._warn_after = 0.0
        self._began = time.monotonic()

    def plan(self, num_candidates: int) -> None:
        self._metrics.set("infineg_candidates_planned", num_candidates)

    def dispatched(self, tasks: Iterable[ReadTask]) -> Iterator[ReadTask]:
        """The same tasks, recorded as they go to the workers."""
        for task in tasks:
            with self._lock:
                now = time.monotonic()
                if not self._in_flight:
                    self._restart(now)
                self._in_flight[task.source, task.round, task.span] = task, now
                self._metrics.set("infineg_parts_queued", len(self._in_flight))
            yield task

    def committed(
        self, part: PartRecord, stage_seconds: Mapping[str, float], *, is_new: bool
    ) -> None:
        """Records a part that a worker has reported; if not new, an earlier run committed it."""
        with self._lock:
            now = time.monotonic()
            if part.is_last:
                self._in_flight.pop((part.source, part.round, part.span), None)
                self._metrics.set("infineg_parts_queued", len(self._in_flight))
            if is_new:
                self._gaps.append(now - self._last)
                self._read.append((now, part.counts.read))
            self._restart(now)
        if is_new:
            self._count(part, stage_seconds)

    def added(self, source: str, number: int) -> None:
        """Records candidates that were selected after their part had been committed."""
        self._metrics.add("infineg_selected_total", number, source)

    def _count(self, part: PartRecord, stage_seconds: Mapping[str, float]) -> None:
        metrics, source = self._metrics, part.source
        metrics.add("infineg_candidates_total", part.counts.read, source)
        metrics.add("infineg_selected_total", part.counts.selected, source)
        metrics.add("infineg_parts_committed_total", 1, source)
        metrics.set("infineg_last_commit_timestamp_seconds", time.time())
        for reason, number in part.counts.rejected.items():
            metrics.add("infineg_rejected_total", number, source, reason)
        for stage, seconds in stage_seconds.items():
            metrics.add("infineg_stage_seconds_total", seconds, stage)

    def _restart(self, now: float) -> None:
        self._last = now
        usual = statistics.median(self._gaps) if self._gaps else 0.0
        self._warn_after = max(self._stuck_after_s, _UNUSUAL * usual)

    def check(self) -> None:
        """Warns when no part was committed for too long; then at doubling intervals."""
        with self._lock:
            now = time.monotonic()
            while self._read and now - self._read[0][0] > _RATE_S:
                self._read.popleft()
            window = min(_RATE_S, max(now - self._began, 1.0))
            rate = sum(number for _, number in self._read) / window
            silent = now - self._last
            is_stuck = bool(self._in_flight) and silent > self._warn_after
            if is_stuck:
                self._warn_after = 2 * silent
                oldest = sorted(self._in_flight.values(), key=lambda pair: pair[1])
        self._metrics.set("infineg_candidates_per_second", rate)
        if is_stuck:
            named = "; ".join(_describe(task, now - since) for task, since in oldest[:_NUM_NAMED])
            more = len(oldest) - _NUM_NAMED
            _log.warning(
                "no part was committed for %.0f s. In flight: %s%s",
                silent, named, f"; and {more} more spans" if more > 0 else "",
            )  # fmt: skip


def _describe(task: ReadTask, seconds: float) -> str:
    first, last = task.partitions[0].id, task.partitions[-1].id
    through = "" if first == last else f" to {last}"
    return f"{task.source} span {task.span} (partitions {first}{through}), {seconds:.0f} s"


@contextlib.contextmanager
def monitor_build(metrics: Metrics, *, stuck_after_s: float) -> Iterator[BuildMonitor]:
    """Checks regularly within the block, also while the driver waits for its workers."""
    monitor = BuildMonitor(metrics, stuck_after_s=stuck_after_s)
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(_CHECK_S):
            monitor.check()

    thread = threading.Thread(target=run, name="build monitor", daemon=True)
    thread.start()
    try:
        yield monitor
    finally:
        is_over.set()
        thread.join()
