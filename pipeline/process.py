"""Tells a process from others of its number, on its machine and elsewhere, and when it ends."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Set
from pathlib import Path

from pydantic import BaseModel


class ProcessId(BaseModel, frozen=True):
    """A process, so that others of the same machine can tell if it is still there."""

    pid: int
    started: int  # clock ticks after the start of the machine: a number is used again; 0 unknown
    boot: str  # one start of one machine, and its name space of process numbers; "" unknown

    @property
    def is_surely_dead(self) -> bool:
        """True only for a process of this machine, since its last start, that is no more."""
        if not self.boot or not self.started or self.boot != _boot():
            return False
        return _started(self.pid) != self.started


def this_process() -> ProcessId:
    return ProcessId(pid=os.getpid(), started=_started(os.getpid()), boot=_boot())


@contextlib.contextmanager
def ending_with_children(names: Set[str], message: str) -> Iterator[None]:
    """Within the block this process ends, with exit code 1, when a child of such a name does.

    For what cannot go on without the child, and would hang. Sees the children of Linux alone, and
    those alone that are there at the beginning.
    """
    is_over = threading.Event()

    def wait_for(pid: int) -> None:
        with contextlib.suppress(ChildProcessError):  # another has waited for it
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if not is_over.is_set():
            sys.stderr.write(message)
            sys.stderr.flush()
            os._exit(1)  # at once: whatever could be asked to end well hangs

    for pid, name in _children():
        if name in names:
            threading.Thread(
                target=wait_for, args=(pid,), name=f"{name} watch", daemon=True
            ).start()
    try:
        yield
    finally:
        is_over.set()


def _children() -> Iterator[tuple[int, str]]:
    """proc(5), stat: number (name, at most 15 bytes) state parent."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            start, _, end = path.read_text(errors="replace").rpartition(")")
            if int(end.split()[1]) == os.getpid():
                yield int(path.parent.name), start.partition("(")[2]


def _boot() -> str:
    """Containers on one machine share its boot_id, but see only processes of their own."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""


def _started(pid: int) -> int:
    """proc(5), stat, field 22; 0 where there is none, or one that only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
