"""Prefetching: workers (processes or threads) fill the slots of a ring buffer in shared memory.

Sending images between processes costs more than a fifth of decoding them, so only tasks and slot
numbers are sent. Worker processes are forked and only fill slots: no CUDA, no locks of other
threads.

Shapes: R slots of the ring.
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

Fill = Callable[[TaskT, Tensor], object]  # writes the result of a task into a slot
_Wait = Callable[[], Tensor]  # blocks until a slot is filled, and returns it
_Submit = Callable[[int, Any], _Wait]  # takes the number of a task and the task

_PREFETCH_FACTOR = 2  # tasks that each worker has queued, as in torch's DataLoader
_ORPHAN_S = 2.0  # how often a worker checks that its parent process still runs


def prefetch(
    fill: Fill[TaskT],
    tasks: Iterable[TaskT],
    *,
    slot_shape: tuple[int, ...],
    workers: int,
    kind: LoaderKind = "process",
    pin: bool = False,
) -> Generator[Tensor, None, None]:
    """One uint8 slot per task, in the order of the tasks, filled by `workers`.

    A slot stays valid until the second next one is requested. `pin` page-locks the ring for
    copies to a GPU. Workers end with the iterator. Raises whatever `fill` raises, and InfinegError
    when a worker process dies.
    """
    num_queued = _PREFETCH_FACTOR * workers
    # Anonymous memory: has no name to leak, and is not limited by /dev/shm (64 MB in Docker).
    memory = mmap.mmap(-1, (num_queued + 1) * math.prod(slot_shape))
    ring_R = torch.frombuffer(memory, dtype=torch.uint8).view(-1, *slot_shape)
    with ExitStack() as stack:
        if pin:
            stack.enter_context(_pinned(ring_R))
        start = _start_processes if kind == "process" else _start_threads
        submit = stack.enter_context(start(fill, ring_R, workers))
        pending: deque[_Wait] = deque()
        for number, task in enumerate(tasks):
            if len(pending) == num_queued:
                yield pending.popleft()()
            pending.append(submit(number, task))
        while pending:
            yield pending.popleft()()


@contextmanager
def _pinned(ring_R: Tensor) -> Iterator[None]:
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(runtime.cudaHostRegister(ring_R.data_ptr(), ring_R.nbytes, 0))
    try:
        yield
    finally:
        torch.cuda.synchronize()  # a copy may still read from it
        torch.cuda.check_error(runtime.cudaHostUnregister(ring_R.data_ptr()))


@contextmanager
def _start_threads(fill: Fill[Any], ring_R: Tensor, workers: int) -> Iterator[_Submit]:
    # One core per worker. Threads that used torch before, such as this one, keep their number.
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "loader", torch.set_num_threads, (1,))

    def submit(number: int, task: Any) -> _Wait:
        slot = ring_R[number % len(ring_R)]
        filled: Future[object] = pool.submit(fill, task, slot)

        def wait_for_slot() -> Tensor:
            filled.result()
            return slot

        return wait_for_slot

    try:
        yield submit
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection

    def receive(self) -> object:
        """Its next reply. Raises InfinegError if it died."""
        try:
            if self.connection in wait([self.connection, self.process.sentinel]):
                return self.connection.recv()
        except (EOFError, ConnectionError):
            pass
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        raise InfinegError(
            f"loader process {self.process.pid} {how}. The kernel sends SIGKILL when memory runs "
            "out: lower train.workers, or set train.loader: thread"
        )


@contextmanager
def _start_processes(fill: Fill[Any], ring_R: Tensor, workers: int) -> Iterator[_Submit]:
    pool: list[_Worker] = []
    stop = partial(_stop, pool)
    # An interpreter that exits with the iterator open would join the workers, and wait for ever.
    atexit.register(stop)

    def submit(number: int, task: Any) -> _Wait:
        worker = pool[number % workers]  # each replies in the order of its tasks
        slot = number % len(ring_R)
        try:
            worker.connection.send((slot, task))
        except ConnectionError:
            worker.receive()  # its last reply, or raises

        def wait_for_slot() -> Tensor:
            error = worker.receive()
            if error is not None:
                assert isinstance(error, Exception)
                raise error
            return ring_R[slot]

        return wait_for_slot

    try:
        for _ in range(workers):
            pool.append(_fork(fill, ring_R))
        yield submit
    finally:
        stop()
        atexit.unregister(stop)


def _stop(pool: list[_Worker]) -> None:
    for worker in pool:
        worker.process.kill()  # it has no state to save
    for worker in pool:
        worker.process.join()
        worker.connection.close()


def _fork(fill: Fill[Any], ring_R: Tensor) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(fill, ring_R, theirs, os.getpid()), name="loader", daemon=True
    )
    # Schedulers send these to all processes of a run, while the trainer may still need batches
    # before it saves. Blocked here, so that a worker has them blocked from its start to its end.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns about forks beside threads, whose locks may be held: a worker takes
            # none.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    return _Worker(process, ours)


def _serve(fill: Fill[Any], ring_R: Tensor, connection: Connection, parent: int) -> None:
    """The main function of a worker process."""
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and a worker has one core
    while True:
        while not connection.poll(_ORPHAN_S):
            if os.getppid() != parent:
                return
        try:
            slot, task = connection.recv()
        except EOFError:
            return
        reply = None
        try:
            fill(task, ring_R[slot])
        except Exception as error:
            error.add_note(f"in a loader process:\n{traceback.format_exc()}")
            reply = error
        connection.send(reply)
