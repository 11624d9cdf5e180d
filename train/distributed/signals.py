"""Signals that end a run cleanly: it saves first, and `--resume` continues from there.

SIGTERM comes before a machine is taken away, SIGUSR1 before a Slurm job's time is up, SIGINT from
the keyboard. A second one ends the process at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import InfinegError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class RunStopped(InfinegError):
    """A run that a signal ended and that can continue. Exit code as of a shell: 128 + signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Which signal this process has received, if any."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """In the block, signals are only noted.

    Only a main thread may handle signals: in another one, such as a worker of Ray Train, whose
    actor ends by other means, nothing is ever received.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _: FrameType | None) -> None:
        request.received = signal.Signals(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number in SIGNALS:
            signal.signal(number, note)
        yield request
    finally:
        restore()
