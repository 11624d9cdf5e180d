"""Progress of long work: a bar on a terminal, a line every 10 s in a log."""

import contextlib
import logging
import sys
import time
from typing import Self

from rich import progress as rich
from rich.console import Console

from pipeline.telemetry.heartbeat import doing

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts units towards `total`, with the rate, the time left and `note`."""

    def __init__(self, title: str, *, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self.note = ""
        self._done = 0
        self._began = self._last_time = time.monotonic()
        self._last_done = 0
        self._bar: rich.Progress | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(doing(self._describe))
        if sys.stderr.isatty():
            self._bar = rich.Progress(
                rich.TextColumn("{task.description}"),
                rich.BarColumn(),
                rich.MofNCompleteColumn(),
                rich.TextColumn(f"{self._unit}, {{task.fields[rate]:,.1f}}/s, left"),
                rich.TimeRemainingColumn(),
                rich.TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(
                self._title, total=self._total or None, rate=0.0, note=""
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self._bar is not None:
            self._bar.stop()

    def _describe(self) -> str:
        if self._bar is not None:
            return ""
        total = f"{self._total:,}" if self._total else "?"
        seconds = format_duration(time.monotonic() - self._began)
        return f"{self._title}: {self._done:,} of {total} {self._unit}, {seconds} so far"

    def expect_less(self, number: int) -> None:
        """Lowers the total by what was done before, which must not count as fast work."""
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
            # Since the last line: work may consist of fast and slow stretches.
            rate = (self._done - self._last_done) / (now - self._last_time)
            self._last_time, self._last_done = now, self._done
            _log.info(
                "%s: %s of %s %s, %.1f/s, %s left%s",
                self._title, f"{self._done:,}", f"{self._total:,}" if self._total else "?",
                self._unit, rate,
                format_duration(max(self._total - self._done, 0) / rate) if self._total else "?",
                f", {self.note}" if self.note else "",
            )  # fmt: skip


def format_duration(seconds: float) -> str:
    """42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_bytes(number: float) -> str:
    """0.4 MB, 1,234.5 GB."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
