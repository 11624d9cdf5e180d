"""One build of a data set at a time: a lease on its folder that a holder renews and a crash ends.

ROOT/lease.json names the holder and until when. It is created, renewed, taken over and removed
only under a condition (`storage.create_exclusive`, `replace_if`, `remove_if`), so that of several
takers one wins. A lease may be taken over

    - once it has expired, and half of its length has passed: so far may clocks differ;
    - at once if its holder was a process of this machine, since its last start, that is no more.

A holder that was stopped for longer than its lease finds out in `check`, which asks the storage.
After a check it has the length of a lease to commit.
"""

import contextlib
import json
import logging
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from pipeline import storage
from pipeline.errors import InfinegError, TransientStorageError

_log = logging.getLogger(__name__)


_MAX_COMMAND = 200


_NUM_TRIES = 5


# A renewal may hang in a storage that is gone; the end of a build does not wait for it.
_MAX_WAIT_S = 10.0


_SECONDS_BETWEEN_LOOKS = 5.0


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


class LeaseRecord(BaseModel, frozen=True):
    """What `lease.json` holds: who builds, since when, until when. Times are of the holder."""

    holder: str  # random, one a lease
    host: str
    process: ProcessId
    command: str
    acquired_at: datetime
    expires_at: datetime
    ttl_s: float

    @property
    def heartbeat_age_s(self) -> float:
        """Seconds since the last renewal, by the clock of this machine."""
        return self.ttl_s - (self.expires_at - _now()).total_seconds()

    @property
    def is_free(self) -> bool:
        """True where another may take it over: its holder is no more, or long silent."""
        return _why_free(self) is not None


class Held(InfinegError):
    """Another process holds the lease."""


class Lease:
    """A lease that is held; made by `hold_lease`."""

    def __init__(self, root: str, record: LeaseRecord) -> None:
        self._uri = lease_uri(root)
        self._record = record
        self._content = _encode(record)
        self._lost: str | None = None
        # One change at a time, of the renewing thread or of a check.
        self._lock = threading.Lock()
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._renew_often, name="lease", daemon=True)

    def check(self) -> None:
        """Renews the lease; raises InfinegError if another process has taken it over."""
        with self._lock:
            self._renew()

    @property
    def is_lost(self) -> bool:
        """True once a renewal has found another holder; asks nobody, so that loops can ask."""
        return self._lost is not None

    def start(self) -> None:
        self._thread.start()

    def release(self) -> None:
        """Removes the lease if it is still this one."""
        self._is_done.set()
        self._thread.join(_MAX_WAIT_S)
        try:
            if not self.is_lost and not self._thread.is_alive():
                storage.remove_if(self._uri, self._content)
        except InfinegError as error:
            _log.warning("the lease stays until it expires: %s", error)

    def _renew_often(self) -> None:
        while not self.is_lost and not self._is_done.wait(self._record.ttl_s / 3):
            try:
                self.check()
            except TransientStorageError:
                continue  # it may be back before the lease has expired, or nobody else wants it
            except InfinegError as error:
                _log.error("%s", error)

    def _renew(self) -> None:
        if self._lost is not None:
            raise InfinegError(self._lost)
        expires_at = _after(_now(), self._record.ttl_s)
        content = _encode(self._record.model_copy(update={"expires_at": expires_at}))
        if content != self._content and not storage.replace_if(self._uri, self._content, content):
            self._lost = self._describe_loss()
            raise InfinegError(self._lost)
        self._content = content

    def _describe_loss(self) -> str:
        other = _read(self._uri)[0]
        now = f"it is held by {_name(other)} now" if other else "its file is gone"
        return (
            f"the lease {storage.redact(self._uri)} was lost: {now}. This process was stopped or "
            "cut off for longer than the lease lasts, and commits nothing more. Run again when "
            "the other is done: what was committed is kept"
        )


def lease_uri(root: str) -> str:
    return storage.join(root, "lease.json")


def read_lease(root: str) -> LeaseRecord | None:
    """Who builds the data set, None where nobody does; one that crashed is still named."""
    return _read(lease_uri(root))[0]


@contextlib.contextmanager
def hold_lease(root: str, ttl_s: float = 60.0, *, wait_s: float = 0.0) -> Iterator[Lease]:
    """Holds the lease of a data set, renewed by a thread.

    The folder need not exist. The lease lasts `ttl_s` beyond its last renewal. Raises Held where
    another has it and keeps it for `wait_s`.
    """
    lease = Lease(root, _wait_for(root, ttl_s, wait_s))
    lease.start()
    try:
        yield lease
    finally:
        lease.release()


def _wait_for(root: str, ttl_s: float, wait_s: float) -> LeaseRecord:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _acquire(root, ttl_s)
        except Held as held:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            _log.info("waiting for %.0f s at most: %s", left_s, held)
            time.sleep(min(left_s, _SECONDS_BETWEEN_LOOKS))


def _acquire(root: str, ttl_s: float) -> LeaseRecord:
    uri = lease_uri(root)
    for _ in range(_NUM_TRIES):
        mine = _new_record(ttl_s)
        other, content = _read(uri)
        if content is None:
            if storage.create_exclusive(uri, _encode(mine)):
                return mine
        elif (reason := _why_free(other)) is None:
            assert other is not None
            raise Held(_refusal(root, other))
        elif storage.replace_if(uri, content, _encode(mine)):
            _log.warning("took over the lease of %s: %s", _name(other), reason)
            return mine
        # Another was faster; what it wrote tells more.
    raise TransientStorageError(f"{storage.redact(uri)} changes all the time; run again")


def _read(uri: str) -> tuple[LeaseRecord | None, bytes | None]:
    """The record and its bytes; (None, bytes) where they say nothing, (None, None) for no file."""
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        return None, None
    try:
        return LeaseRecord.model_validate_json(content), content
    except ValidationError:
        return None, content


def _why_free(other: LeaseRecord | None) -> str | None:
    """Why a lease may be taken over, None where it may not."""
    if other is None:
        return "it cannot be read"
    if other.process.is_surely_dead:
        return "its process is no more"
    if _now() > _after(other.expires_at, other.ttl_s / 2):
        return f"it expired at {_local(other.expires_at)}"
    return None


def _refusal(root: str, other: LeaseRecord) -> str:
    left_s = max((_after(other.expires_at, other.ttl_s / 2) - _now()).total_seconds(), 0)
    return (
        f"{storage.redact(root)} is being built by {_name(other)} since "
        f"{_local(other.acquired_at)}. Wait for it, or stop it. If it is no more, run again in "
        f"{left_s:.0f} s: its lease {storage.redact(lease_uri(root))} expires at "
        f"{_local(other.expires_at)} unless it is renewed"
    )


def _name(other: LeaseRecord | None) -> str:
    return (
        f"{other.host}, process {other.process.pid} ({other.command})"
        if other
        else "an unknown process"
    )


def _new_record(ttl_s: float) -> LeaseRecord:
    now = _now()
    return LeaseRecord(
        holder=secrets.token_hex(8),
        host=socket.gethostname(),
        process=this_process(),
        command=storage.redact(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:_MAX_COMMAND],
        acquired_at=now,
        expires_at=_after(now, ttl_s),
        ttl_s=ttl_s,
    )


def _encode(record: LeaseRecord) -> bytes:
    return (json.dumps(record.model_dump(mode="json"), indent=1) + "\n").encode()


def _now() -> datetime:
    return datetime.now(UTC)


def _after(moment: datetime, seconds: float) -> datetime:
    return datetime.fromtimestamp(moment.timestamp() + seconds, UTC)


def _local(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def this_process() -> ProcessId:
    return ProcessId(pid=os.getpid(), started=_started(os.getpid()), boot=_boot())


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
