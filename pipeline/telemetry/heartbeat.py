"""Says what is going on where nothing has been logged for some seconds."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)
_FIRST_S, _SILENCE_S = 2.0, 4.5
_CHECK_S = 0.25

# What is going on, the innermost last; "" where a bar shows it.
_doing: list[Callable[[], str]] = []


@contextlib.contextmanager
def doing(describe: Callable[[], str]) -> Iterator[None]:
    """What `never_silent` says meanwhile; `describe` is called in another thread."""
    _doing.append(describe)
    try:
        yield
    finally:
        _doing.remove(describe)


@contextlib.contextmanager
def never_silent(what: str = "working") -> Iterator[None]:
    """Logs a line 2 s after the start, and wherever there was none for 4.5 s.

    Of many training processes, the first one.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    heard, ended, began = _Heard(), threading.Event(), time.monotonic()
    thread = threading.Thread(target=_speak, args=(heard, ended), daemon=True)
    root = logging.getLogger()
    with doing(lambda: f"{what}: {time.monotonic() - began:.0f} s"):
        root.addHandler(heard)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            root.removeHandler(heard)


class _Heard(logging.Handler):
    """Notes when something was logged last."""

    def __init__(self) -> None:
        super().__init__()
        self.silent_from = time.monotonic()
        self.longest = _FIRST_S

    def emit(self, _: logging.LogRecord) -> None:
        self.silent_from, self.longest = time.monotonic(), _SILENCE_S


def _speak(heard: _Heard, ended: threading.Event) -> None:
    while not ended.wait(_CHECK_S):
        if time.monotonic() - heard.silent_from < heard.longest:
            continue
        if line := _doing[-1]():
            _log.info("%s", line)
