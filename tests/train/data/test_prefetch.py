"""Prefetched slots, and how workers end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import InfinegError
from train.config import LoaderKind
from train.data.prefetch import prefetch
from train.loop.run_log import Meter

KINDS: tuple[LoaderKind, ...] = ("process", "thread")
# An iterator in a process of its own, which prints when it runs. Its workers are its children.
SCRIPT = """
import os, sys, time
from train.data.prefetch import prefetch
slots = prefetch(lambda task, slot: slot.fill_(task), range(100), slot_shape=(4,), workers=2)
next(slots)
print("runs", flush=True)
{then}
"""


def write_number(task: int, slot: Tensor) -> None:
    slot.fill_(task % 251)


def refuse_seven(task: int, _: Tensor) -> None:
    if task == 7:
        raise InfinegError("shard 7 is missing")


def open_slots(
    num_tasks: int = 40, *, workers: int = 2, kind: LoaderKind = "process"
) -> Iterator[Tensor]:
    return prefetch(
        write_number, range(num_tasks), slot_shape=(16,), workers=workers, kind=kind
    )  # fmt: skip


def loader_processes() -> list[multiprocessing.process.BaseProcess]:
    return [child for child in multiprocessing.active_children() if child.name == "loader"]


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 20
    while alive := {pid for pid in pids if is_running(pid)}:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return set(map(int, text.split()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [1, 3])
def test_slots_come_in_the_order_of_their_tasks(kind: LoaderKind, workers: int) -> None:
    seen = [slot.tolist() for slot in open_slots(workers=workers, kind=kind)]
    assert seen == [[number] * 16 for number in range(40)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_stays_until_the_next_but_one_is_asked_for(kind: LoaderKind) -> None:
    slots = open_slots(kind=kind)
    before = next(slots)
    for number in range(1, 40):
        now = next(slots)
        time.sleep(0.01)  # time for a worker to overwrite it
        assert before.tolist() == [number - 1] * 16
        before = now


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_a_worker_is_raised_here_as_it_is(kind: LoaderKind) -> None:
    slots = prefetch(refuse_seven, range(20), slot_shape=(1,), workers=2, kind=kind)
    with pytest.raises(InfinegError) as raised:
        list(slots)
    assert str(raised.value) == "shard 7 is missing"
    assert not loader_processes()


def test_a_killed_worker_is_an_error_at_once() -> None:
    slots = open_slots(10**6)
    next(slots)
    victim = loader_processes()[0]
    began = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(InfinegError, match=rf"loader process {victim.pid} was killed by SIGKILL"):
        deque(slots, maxlen=0)
    assert time.monotonic() - began < 5
    assert not loader_processes()


def shared_files(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[-1] for line in lines if "/dev/shm" in line}


def test_workers_end_with_the_stream_and_leave_no_file() -> None:
    before = shared_files(os.getpid())  # of tests before it
    slots = open_slots()
    next(slots)
    workers = loader_processes()
    assert len(workers) == 2
    for pid in (os.getpid(), workers[0].pid):
        assert shared_files(pid) <= before
    slots.close()
    assert not any(worker.is_alive() for worker in workers)
    list(open_slots())
    assert not loader_processes()


def test_a_signal_to_all_processes_leaves_the_trainer_its_batches() -> None:
    slots = open_slots()
    next(slots)
    for worker in loader_processes():
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    assert [slot[0].item() for slot in slots] == list(range(1, 40))


@pytest.mark.parametrize(
    ("then", "code"), [("raise OSError", 1), ("sys.exit(3)", 3), ("time.sleep(60)", -9)]
)
def test_workers_end_with_their_process_however_it_ends(then: str, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(then=then)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        workers = children_of(process.pid) if process.stdout.readline() and code == -9 else set()
        if code == -9:
            assert len(workers) == 2
            process.kill()
        assert process.wait(timeout=20) == code
    wait_until_gone(workers)


def test_memory_is_flat_however_many_batches() -> None:
    slots = prefetch(write_number, range(4000), slot_shape=(1 << 18,), workers=2)
    for _ in range(300):
        next(slots)
    pids = [os.getpid(), *(worker.pid for worker in loader_processes())]
    early = [resident_mb(pid) for pid in pids]
    for _ in range(3600):
        next(slots)
    late = [resident_mb(pid) for pid in pids]
    assert max(now - then for now, then in zip(late, early, strict=True)) < 4
    slots.close()


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_threads_leave_the_trainer_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        slots = open_slots(kind="thread")
        next(slots)
        assert torch.get_num_threads() == 2
        list(slots)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_data_wait_is_what_the_loop_waits_and_not_what_workers_take(kind: LoaderKind) -> None:
    def slow(_: int, slot: Tensor) -> None:
        time.sleep(0.04)
        slot.fill_(1)

    def wait_of(step_s: float) -> float:
        slots = prefetch(slow, range(24), slot_shape=(1,), workers=2, kind=kind)
        meter = Meter(slots, 1)
        next(meter)
        meter.restart()
        for _ in meter:
            time.sleep(step_s)
        return meter.read()["data_wait"]

    # Two workers make a batch in 20 ms.
    assert wait_of(0.06) < 0.2
    assert wait_of(0.002) > 0.5
