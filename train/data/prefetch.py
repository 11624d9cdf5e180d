"""Batches made ahead by processes or threads, in a ring of memory that both sides see.

Images that travel between processes cost more than a fifth of decoding them, so that only numbers
travel. Processes are forked and do nothing but fill slots: no CUDA, no locks of other threads.

Shapes: R slots of a ring.
"""

import atexit
import math
import mmap
import multiprocessing
import os
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pipeline.errors import InfinegError
from train.config import LoaderKind

TaskT = TypeVar("TaskT")


Fill = Callable[[TaskT, Tensor], object]  # writes what a task asks for into a slot


_PREFETCH = 2  # tasks that each worker is ahead


_ORPHAN_S = 2.0  # how long a worker can miss that the process it works for was killed


def prefetch(
    fill: Fill[TaskT],
    tasks: Iterable[TaskT],
    *,
    slot_shape: tuple[int, ...],
    workers: int,
    kind: LoaderKind = "process",
    pin: bool = False,
) -> Generator[Tensor, None, None]:
    """A uint8 slot a task, in the order of the tasks, filled by `workers` processes or threads.

    A slot may be overwritten once the next but one has been asked for. `pin` locks the ring for
    copies to a GPU. Workers end with the iterator. Raises what `fill` raises, and InfinegError
    where a worker process ends on its own.
    """
    ring_R = _shared_ring(_PREFETCH * workers + 1, slot_shape)
    with ExitStack() as stack:
        if pin:
            stack.enter_context(_pinned(ring_R))
        start = _start_processes if kind == "process" else _start_threads
        begin = stack.enter_context(start(fill, ring_R, workers))
        waiting: deque[Callable[[], Tensor]] = deque()
        for number, task in enumerate(tasks):
            if len(waiting) == _PREFETCH * workers:
                yield waiting.popleft()()
            waiting.append(begin(number, task))
        while waiting:
            yield waiting.popleft()()


def _shared_ring(num_slots: int, slot_shape: tuple[int, ...]) -> Tensor:
    """Anonymous memory: it has no name to leak, and no limit of /dev/shm, 64 MB in Docker."""
    num_bytes = num_slots * math.prod(slot_shape)
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8).view(-1, *slot_shape)


@contextmanager
def _pinned(ring_R: Tensor) -> Iterator[None]:
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(runtime.cudaHostRegister(ring_R.data_ptr(), ring_R.nbytes, 0))
    try:
        yield
    finally:
        torch.cuda.synchronize()  # a copy may still read
        torch.cuda.check_error(runtime.cudaHostUnregister(ring_R.data_ptr()))


# Takes a task's number and the task; what it returns waits for the slot.
_Begin = Callable[[int, Any], Callable[[], Tensor]]


@contextmanager
def _start_threads(fill: Fill[Any], ring_R: Tensor, workers: int) -> Iterator[_Begin]:
    # One core each. Threads that have asked for their number before keep it, as this one here.
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "loader", torch.set_num_threads, (1,))

    def begin(number: int, task: Any) -> Callable[[], Tensor]:
        slot = ring_R[number % len(ring_R)]
        filled: Future[object] = pool.submit(fill, task, slot)

        def finish() -> Tensor:
            filled.result()
            return slot

        return finish

    try:
        yield begin
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection

    def receive(self) -> object:
        """Its next answer. Raises InfinegError where it is dead, which it must not be."""
        try:
            if self.connection in wait([self.connection, self.process.sentinel]):
                return self.connection.recv()
        except (EOFError, ConnectionError):
            pass
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        raise InfinegError(
            f"loader process {self.process.pid} {how}. A SIGKILL that nobody sent is the kernel's, "
            "short of memory: lower train.workers, or set train.loader: thread"
        )


@contextmanager
def _start_processes(fill: Fill[Any], ring_R: Tensor, workers: int) -> Iterator[_Begin]:
    team: list[_Worker] = []
    end = partial(_end, team)
    # Where the interpreter ends with a stream left open: it would join them, and wait for ever.
    atexit.register(end)

    def begin(number: int, task: Any) -> Callable[[], Tensor]:
        worker = team[number % workers]  # each answers in the order it was asked
        slot = number % len(ring_R)
        _send(worker, (slot, task))

        def finish() -> Tensor:
            error = worker.receive()
            if error is not None:
                assert isinstance(error, Exception)
                raise error
            return ring_R[slot]

        return finish

    try:
        for _ in range(workers):
            team.append(_fork(fill, ring_R))
        yield begin
    finally:
        end()
        atexit.unregister(end)


def _end(team: list[_Worker]) -> None:
    for worker in team:
        worker.process.kill()  # it has nothing to lose
    for worker in team:
        worker.process.join()
        worker.connection.close()


def _send(worker: _Worker, message: object) -> None:
    try:
        worker.connection.send(message)
    except ConnectionError:
        worker.receive()  # its last answer, or the error


def _fork(fill: Fill[Any], ring_R: Tensor) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(fill, ring_R, theirs, os.getpid()), name="loader", daemon=True
    )
    # Sent to all processes of a run whose trainer may need batches still, before it saves: a worker
    # has them blocked from its first moment to its last.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads, for the locks that these may hold: a
            # worker takes none.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    return _Worker(process, ours)


def _serve(fill: Fill[Any], ring_R: Tensor, connection: Connection, parent: int) -> None:
    """All that a worker process does."""
    torch.set_num_threads(1)  # OpenMP's threads did not come along; and one core is one worker's
    while True:
        while not connection.poll(_ORPHAN_S):
            if os.getppid() != parent:
                return
        try:
            slot, task = connection.recv()
        except EOFError:
            return
        answer = None
        try:
            fill(task, ring_R[slot])
        except Exception as error:
            error.add_note(f"in a loader process:\n{traceback.format_exc()}")
            answer = error
        connection.send(answer)
