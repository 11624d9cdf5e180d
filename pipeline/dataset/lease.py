"""One build of a data set at a time: a lease on its folder, renewed by its holder.

ROOT/lease.json names the holder and the time of expiry. It is created, renewed, taken over and
removed only by conditional writes (`storage.create_exclusive`, `replace_if`, `remove_if`), so that
one of several takers wins. A lease may be taken over

    - when half of its length has passed since it expired: clocks may differ by so much;
    - at once if its holder was a process of this machine, since its last boot, that has ended.

A holder that was stopped for longer than its lease changes nothing when it goes on: while a lease
is held, every write below the root asks first whether it still is (`storage.fenced`), in this
process and in its workers. `check` asks before a commit, and renews.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from pydantic import BaseModel, ValidationError

from pipeline import storage
from pipeline.errors import InfinegError, TransientStorageError

_log = logging.getLogger(__name__)
_MAX_COMMAND = 200  # characters
_NUM_TRIES = 5
# A renewal may hang if the storage cannot be reached; the end of a build does not wait for it.
_MAX_WAIT_S = 10.0
_SECONDS_BETWEEN_TRIES = 5.0


class ProcessId(BaseModel, frozen=True):
    """Identifies a process, so that others on the same machine can see whether it still runs."""

    pid: int
    started: int  # in clock ticks since boot, because a pid is used again; 0 if unknown
    boot: str  # id of the machine's boot and of the pid namespace; "" if unknown

    @property
    def is_surely_dead(self) -> bool:
        """True only for a process of this machine, since its last boot, that has ended."""
        if not self.boot or not self.started or self.boot != _boot():
            return False
        return _started(self.pid) != self.started


class LeaseRecord(BaseModel, frozen=True):
    """`lease.json`: who builds, since when, until when. Times are by the holder's clock."""

    holder: str  # random, different for each lease
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
        """Whether another may take it over: its holder has ended or has not renewed it for long."""
        return _why_free(self) is not None


class Held(InfinegError):
    """Another process holds the lease."""


class LeaseFence(BaseModel, frozen=True):
    """Lets the holder of a lease write, and its workers, to which it is sent."""

    uri: str  # of the lease
    holder: str

    def check(self, content: bytes | None) -> None:
        """Raises InfinegError if the lease has another holder, or is gone."""
        other = _parse(content)
        if other is None or other.holder != self.holder:
            raise InfinegError(_describe_loss(self.uri, other))


class Lease:
    """A lease that is held; made by `hold_lease`."""

    def __init__(self, root: str, record: LeaseRecord) -> None:
        self._uri = lease_uri(root)
        self._record = record
        self._content = _encode(record)
        self._lost: str | None = None
        # One change at a time: the renewing thread and `check` both make some.
        self._lock = threading.Lock()
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._renew_often, name="lease", daemon=True)
        self._thread.start()

    @property
    def fence(self) -> LeaseFence:
        return LeaseFence(uri=self._uri, holder=self._record.holder)

    def check(self) -> None:
        """Renews the lease; raises InfinegError if another process has taken it over."""
        with self._lock:
            self._renew()

    @property
    def is_lost(self) -> bool:
        """True once a renewal has found another holder. Reads no storage, so loops can ask it."""
        return self._lost is not None

    @property
    def loss(self) -> str:
        """Who has it now; "" unless it is lost."""
        return self._lost or ""

    def is_found_lost(self) -> bool:
        """Whether it is lost, as far as the storage can say."""
        with contextlib.suppress(InfinegError):
            self.check()
        return self.is_lost

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
                continue  # it may pass before the lease expires, or nobody else may want the lease
            except InfinegError as error:
                _log.error("%s", error)

    def _renew(self) -> None:
        if self._lost is not None:
            raise InfinegError(self._lost)
        expires_at = _now() + timedelta(seconds=self._record.ttl_s)
        content = _encode(self._record.model_copy(update={"expires_at": expires_at}))
        if content != self._content and not storage.replace_if(self._uri, self._content, content):
            self._lost = _describe_loss(self._uri, _read(self._uri)[0])
            raise InfinegError(self._lost)
        self._content = content


def lease_uri(root: str) -> str:
    return storage.join(root, "lease.json")


def read_lease(root: str) -> LeaseRecord | None:
    """The lease of a data set, also of a process that crashed; None if there is none."""
    return _read(lease_uri(root))[0]


@contextlib.contextmanager
def hold_lease(root: str, ttl_s: float = 60.0, *, wait_s: float = 0.0) -> Iterator[Lease]:
    """Holds the lease of a data set, renewed by a thread.

    The folder need not exist. The lease lasts `ttl_s` beyond its last renewal. Raises Held if
    another process has it and keeps it for `wait_s`.
    """
    lease = Lease(root, _wait_for(root, ttl_s, wait_s))
    try:
        with storage.fenced(root, lease.fence):
            yield lease
    except Exception as error:
        # Whatever has failed, a new holder may be why: it has removed what this one was using.
        if lease.is_found_lost():
            raise InfinegError(lease.loss) from error
        raise
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
            time.sleep(min(left_s, _SECONDS_BETWEEN_TRIES))


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
        # Another was faster; read again what it wrote.
    raise TransientStorageError(f"{storage.redact(uri)} keeps changing; run again")


def _read(uri: str) -> tuple[LeaseRecord | None, bytes | None]:
    """The record and its bytes; (None, bytes) if they are invalid, (None, None) without a file."""
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        return None, None
    return _parse(content), content


def _parse(content: bytes | None) -> LeaseRecord | None:
    """None if it is missing or invalid."""
    try:
        return None if content is None else LeaseRecord.model_validate_json(content)
    except ValidationError:
        return None


def _why_free(other: LeaseRecord | None) -> str | None:
    """Why a lease may be taken over; None if it may not."""
    if other is None:
        return "it cannot be read"
    if other.process.is_surely_dead:
        return "its process has ended"
    if _now() > other.expires_at + timedelta(seconds=other.ttl_s / 2):
        return f"it expired at {_local(other.expires_at)}"
    return None


def _describe_loss(uri: str, other: LeaseRecord | None) -> str:
    now = f"it is held by {_name(other)} now" if other else "its file is gone"
    return (
        f"the lease {storage.redact(uri)} was lost: {now}. This process was stopped or cut off for "
        "longer than the lease lasts, and writes nothing more. Run again when the other is done: "
        "what was committed is kept"
    )


def _refusal(root: str, other: LeaseRecord) -> str:
    free_at = other.expires_at + timedelta(seconds=other.ttl_s / 2)
    left_s = max((free_at - _now()).total_seconds(), 0)
    return (
        f"{storage.redact(root)} is being built by {_name(other)} since "
        f"{_local(other.acquired_at)}. Wait for it, or stop it. If it is gone, run again in "
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
        expires_at=now + timedelta(seconds=ttl_s),
        ttl_s=ttl_s,
    )


def _encode(record: LeaseRecord) -> bytes:
    return (json.dumps(record.model_dump(mode="json"), indent=1) + "\n").encode()


def _now() -> datetime:
    return datetime.now(UTC)


def _local(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def this_process() -> ProcessId:
    return ProcessId(pid=os.getpid(), started=_started(os.getpid()), boot=_boot())


def _boot() -> str:
    """Containers on one machine share its boot_id but see only their own processes."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _started(pid: int) -> int:
    """Clock ticks from the machine's boot to the process's start; 0 if it has ended."""
    try:
        # Both by the clock of the machine, which may be set; their difference does not change.
        boot_time, process = psutil.boot_time(), psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return 0
        seconds: float = process.create_time() - boot_time
        return round(seconds * os.sysconf("SC_CLK_TCK"))
    except psutil.NoSuchProcess:
        return 0
