"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts `advance`d units towards `total`, with the rate and the time that is left.

    `note`, where set, is shown beside them.
    """

    def __init__(self, what: str, *, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self.note = ""
        self._done = 0
        self._began = self._last_time = time.monotonic()
        self._last_done = 0
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(f"{self._unit}, {{task.fields[rate]:,.1f}}/s, left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(
                self._what, total=self._total or None, rate=0.0, note=""
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect_less(self, number: int) -> None:
        """Some of the total is done already, and must not count as fast work."""
        self._total = max(self._total - number, 0)
        if self._bar is not None:
            self._bar.update(self._task, total=self._total or None)

    def advance(self, number: int = 1) -> None:
        self._done += number
        now = time.monotonic()
        if self._bar is not None:
            rate = self._done / max(now - self._began, 1e-9)
            self._bar.update(self._task, completed=self._done, rate=rate, note=self.note)
        elif now - self._last_time >= _SECONDS_BETWEEN_LINES:
            # Of late, not on the whole: work may consist of fast and slow stretches.
            rate = (self._done - self._last_done) / (now - self._last_time)
            self._last_time, self._last_done = now, self._done
            _log.info(
                "%s: %s of %s %s, %.1f/s, %s left%s",
                self._what,
                f"{self._done:,}",
                f"{self._total:,}" if self._total else "?",
                self._unit,
                rate,
                format_duration(max(self._total - self._done, 0) / rate) if self._total else "?",
                f", {self.note}" if self.note else "",
            )


def format_duration(seconds: float) -> str:
    """42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
