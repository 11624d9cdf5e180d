"""Tells a process from others of its number, on its machine and elsewhere."""

import os
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
