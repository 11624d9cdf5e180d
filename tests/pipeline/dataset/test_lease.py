"""Of two builds of one data set, the second is refused, unless the first is no more."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.dataset.lease import Lease, ProcessId, hold_lease, lease_uri, this_process
from pipeline.errors import InfinegError

# Says when it holds the lease, and after a line on its input, if it still does.
HOLDER = """
import sys
from pipeline.errors import InfinegError
from pipeline.dataset.lease import hold_lease
try:
    with hold_lease(sys.argv[1], ttl_s=float(sys.argv[2])) as lease:
        print("held", flush=True)
        sys.stdin.readline()
        lease.check()
        print("still held", flush=True)
except InfinegError as error:
    print(error, flush=True)
"""


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A data set that is not there yet."""
    if request.param == "local":
        return str(tmp_path / "data" / "cats")
    return storage.join(request.getfixturevalue("s3_root"), "cats")


@contextlib.contextmanager
def holder(root: str, ttl_s: float = 60) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, root, str(ttl_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip()


def written(root: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(storage.read_bytes(lease_uri(root)))
    return record


def write_other(root: str, *, expired_s: float, ttl_s: float = 60, **changes: Any) -> None:
    """A lease of another machine."""
    expires_at = datetime.now(UTC) - timedelta(seconds=expired_s)
    process = {"pid": 4711, "started": 1, "boot": "of another machine"}
    record = {
        "holder": "another",
        "host": "node-7",
        "process": process,
        "command": "infineg build cats.yaml",
        "acquired_at": "2026-01-01T00:00:00Z",
        "expires_at": expires_at.isoformat(),
        "ttl_s": ttl_s,
    }
    storage.write_atomic(lease_uri(root), json.dumps(record | changes).encode())


def test_lease_is_there_while_held_and_gone_afterwards(root: str) -> None:
    with hold_lease(root) as lease:
        record = written(root)
        assert record["process"]["pid"] == os.getpid()
        assert storage.list_files(root) == ["lease.json"]
        lease.check()
        assert written(root)["holder"] == record["holder"]
        assert written(root)["expires_at"] > record["expires_at"]
    assert storage.list_files(root) == []


def test_second_holder_is_refused_with_all_it_needs_to_know(root: str) -> None:
    with hold_lease(root), pytest.raises(InfinegError) as told:
        _take(root)
    for part in (root, f"process {os.getpid()}", "since 20", "lease.json", "stop it", "expires at"):
        assert part in str(told.value)
    assert told.value.exit_code == 1


def test_lease_is_gone_after_a_failed_block(root: str) -> None:
    with pytest.raises(ZeroDivisionError), hold_lease(root):
        raise ZeroDivisionError
    assert storage.list_files(root) == []


def test_held_lease_outlives_its_length(tmp_path: Path) -> None:
    with hold_lease(str(tmp_path), ttl_s=3) as lease:  # a busy machine may renew it late
        time.sleep(4)
        with pytest.raises(InfinegError, match="is being built by"):
            _take(str(tmp_path))
        assert not lease.is_lost
        lease.check()


def test_lease_of_another_machine_lasts_half_its_length_longer(root: str) -> None:
    write_other(root, expired_s=-5)
    with pytest.raises(InfinegError, match=r"by node-7, process 4711 \(infineg build cats\.yaml\)"):
        _take(root)
    write_other(root, expired_s=25)
    with pytest.raises(InfinegError, match=r"run again in [45] s"):
        _take(root)
    write_other(root, expired_s=31)
    with hold_lease(root):
        assert written(root)["holder"] != "another"


def test_unreadable_lease_is_taken_over(root: str) -> None:
    storage.write_atomic(lease_uri(root), b"{")
    with hold_lease(root) as lease:
        lease.check()


def test_lease_of_a_killed_process_is_taken_over_at_once(root: str) -> None:
    with holder(root) as process:
        assert says(process) == "held"
        with pytest.raises(InfinegError, match=f"process {process.pid}"):
            _take(root)
        process.send_signal(signal.SIGKILL)
        # Dead, and not even waited for.
        while not ProcessId.model_validate(written(root)["process"]).is_surely_dead:
            time.sleep(0.01)
        with hold_lease(root) as lease:
            lease.check()


def test_number_of_a_dead_process_used_again_does_not_block(root: str) -> None:
    mine = this_process()
    assert not mine.is_surely_dead
    reused = mine.model_copy(update={"started": mine.started - 1})
    write_other(root, expired_s=-60, process=reused.model_dump())
    with hold_lease(root):
        assert written(root)["holder"] != "another"


@pytest.mark.parametrize("change", [{"boot": "another"}, {"boot": ""}, {"started": 0}])
def test_process_that_cannot_be_seen_from_here_is_not_called_dead(change: dict[str, Any]) -> None:
    dead = this_process().model_copy(update={"pid": 2**22 + 1})
    assert dead.is_surely_dead
    assert not dead.model_copy(update=change).is_surely_dead


def test_holder_that_was_stopped_finds_its_lease_lost_and_says_who_took_over(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dataset.lease._SECONDS_BETWEEN_TRIES", 0.05)
    with holder(root, ttl_s=0.5) as process:
        assert says(process) == "held"
        process.send_signal(signal.SIGSTOP)
        with hold_lease(root, wait_s=30) as lease:
            process.send_signal(signal.SIGCONT)
            said = process.communicate("\n", timeout=30)[0]
            lease.check()
            assert written(root)["process"]["pid"] == os.getpid(), "it left the new lease alone"
    assert "was lost: it is held by" in said
    assert f"process {os.getpid()}" in said
    assert "still held" not in said


def test_stopped_holder_that_nobody_replaced_goes_on(root: str) -> None:
    with holder(root, ttl_s=0.3) as process:
        assert says(process) == "held"
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        process.send_signal(signal.SIGCONT)
        assert process.communicate("\n", timeout=30)[0].strip() == "still held"


def test_lease_whose_file_was_removed_is_lost(root: str) -> None:
    with hold_lease(root) as lease:
        storage.remove_many([lease_uri(root)])
        with pytest.raises(InfinegError, match="was lost: its file is gone"):
            lease.check()
        assert lease.is_lost
        with pytest.raises(InfinegError, match="was lost"):
            lease.check()


def test_thread_finds_the_loss_by_itself(tmp_path: Path) -> None:
    with hold_lease(str(tmp_path), ttl_s=0.3) as lease:
        write_other(str(tmp_path), expired_s=-60)
        deadline = time.monotonic() + 10
        while not lease.is_lost:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert written(str(tmp_path))["holder"] == "another", "the lease of another stays"


@pytest.mark.parametrize("is_there", [True, False], ids=["expired", "none"])
def test_of_many_threads_one_gets_the_lease(root: str, is_there: bool) -> None:
    for _ in range(3):
        if is_there:
            write_other(root, expired_s=100)
        with contextlib.ExitStack() as stack:
            outcomes = _race(root, stack, num_threads=12)
            leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
            assert len(leases) == 1
            assert sum("is being built by" in str(outcome) for outcome in outcomes) == 11
            leases[0].check()


def test_of_many_processes_one_gets_an_expired_lease(root: str) -> None:
    write_other(root, expired_s=100)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(holder(root)) for _ in range(4)]
        said = [says(process) for process in processes]
        assert said.count("held") == 1
        assert sum("is being built by" in line for line in said) == 3


def test_command_is_shown_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/infineg", "build", "--set", "a.token=S", "s3://u:S@b/f"])
    with hold_lease(str(tmp_path)):
        assert written(str(tmp_path))["command"] == "infineg build --set a.token=*** s3://***@b/f"


def _take(root: str) -> None:
    with hold_lease(root):
        pass


def _race(root: str, stack: contextlib.ExitStack, num_threads: int) -> list[Lease | InfinegError]:
    """What each of many threads gets that ask at the same time."""
    barrier = threading.Barrier(num_threads)

    def take(_: int) -> Lease | InfinegError:
        barrier.wait()
        try:
            return stack.enter_context(hold_lease(root))
        except InfinegError as error:
            return error

    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(take, range(num_threads)))
