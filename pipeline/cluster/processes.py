"""Runs one function over many tasks in processes of this machine, without Ray.

Ray takes ten seconds to start, and some more per worker, which is longer than a small build.
"""

import contextlib
import faulthandler
import itertools
import logging
import os
import pickle
import signal
import site
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pydantic import BaseModel

from pipeline import storage
from pipeline.errors import InfinegError

_log = logging.getLogger(__name__)

MOST_DEATHS = 3  # of the processes that run one task
_MOST_CHARACTERS = 300  # of a task, in messages
_SERVE = "from pipeline.cluster.processes import serve; serve({})"

Method = Callable[[Any, Any], Iterator[Any]]


class Task(BaseModel, frozen=True):
    """What a worker process is to do."""

    careful: bool = False  # processes have died of it: read in another one, see `worker.careful`


class Died(Exception):
    """A process has ended: how, and its last words."""


class Processes:
    """Processes that are running, each with a task at a time."""

    def __init__(self, num_workers: int, *, threads: int) -> None:
        """threads: of the libraries for linear algebra, in each process."""
        self.num_workers = num_workers
        self._threads = threads
        self._idle = [Process(threads=threads) for _ in range(num_workers)]  # they import meanwhile

    def close(self) -> None:
        while self._idle:
            self._idle.pop().kill()

    def map(
        self, method: Method, tasks: Iterable[Task], *, make_worker: Callable[[], Any]
    ) -> Iterator[pa.Table]:
        """See `workers.Cluster.map`."""
        job = pickle.dumps((make_worker, method))
        waiting: Iterator[Attempt] = map(Attempt, tasks)
        running: dict[Connection, tuple[Process, Attempt]] = {}
        try:
            while True:
                for attempt in itertools.islice(waiting, self.num_workers - len(running)):
                    process = self._idle.pop() if self._idle else Process(threads=self._threads)
                    process.begin(job, attempt.task)
                    running[process.connection] = process, attempt
                if not running:
                    return
                for connection in wait(list(running)):
                    assert isinstance(connection, Connection)
                    process, attempt = running[connection]
                    try:
                        result = process.receive()
                    except Died as died:
                        del running[connection]
                        waiting = itertools.chain([attempt.again(died)], waiting)
                        continue
                    if result is None:
                        del running[connection]
                        self._idle.append(process)
                    elif attempt.is_new():
                        yield result
        finally:
            for process, _ in running.values():
                process.kill()


@dataclass
class Attempt:
    """A task, what was already received of it, and what it has cost."""

    task: Task
    num_passed_on: int = 0  # tables
    num_received: int = 0  # in this attempt
    num_deaths: int = 0
    is_done: bool = False

    def is_new(self) -> bool:
        """Counts another table; whether no earlier attempt has brought it."""
        self.num_received += 1
        is_new = self.num_received > self.num_passed_on
        self.num_passed_on += is_new
        return is_new

    def again(self, died: Died) -> Self:
        """The next attempt; raises InfinegError if there were enough."""
        if self.num_deaths + 1 == MOST_DEATHS:
            return self.carefully(died)
        return replace(self.anew(), num_deaths=self.num_deaths + 1)

    def anew(self) -> Self:
        return replace(self, num_received=0)

    def carefully(self, died: Exception) -> Self:
        """The attempt after `MOST_DEATHS`; raises InfinegError if it was one with care."""
        if self.task.careful:
            raise InfinegError(
                f"worker processes died one after the other of the same task, the last by {died}: "
                f"{self._described()}. Perhaps memory is short (see `dmesg`): then set "
                "build.workers lower. Run the same command again: it resumes"
            )
        _log.warning(
            "%d worker processes died of one task, the last by %s. It is read again with care, and "
            "the samples that they died of are rejected as crashed: %s",
            MOST_DEATHS, died, self._described(),
        )  # fmt: skip
        task = self.task.model_copy(update={"careful": True})
        return replace(self, task=task, num_received=0, num_deaths=0)

    def _described(self) -> str:
        text = str(self.task)  # of a partition with every file in it
        return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."


class Process:
    """A running Python that does tasks, one at a time, and ends when this process does."""

    def __init__(self, *, threads: int) -> None:
        self.connection, theirs = Pipe()
        self._job = b""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        path = [*own_folders(), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self._popen = subprocess.Popen(
                # Safe: the working folder and the script's folder are not on its path.
                [sys.executable, "-P", "-c", _SERVE.format(theirs.fileno())],
                stdin=subprocess.PIPE,  # its end tells that this process has ended
                stdout=self._log, stderr=self._log,
                pass_fds=[theirs.fileno()],
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": str(threads)},
            )  # fmt: skip

    def begin(self, job: bytes, task: Task) -> None:
        """job: a pickled pair of `make_worker` and `method`, see `workers.Cluster.map`."""
        with contextlib.suppress(ConnectionError):  # `receive` will notice
            if job != self._job:
                self._job = job
                self.connection.send(job)
            self.connection.send(task)

    def receive(self) -> Any:
        """What `method` yields next, or None at its end. Raises its error, or Died."""
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionError):
            code = self._popen.wait()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            last_words = self._last_words()
            self.kill()
            raise Died(how + last_words) from None
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()
        for file in (self._popen.stdin, self._log, self.connection):
            assert file is not None
            file.close()

    def _last_words(self) -> str:
        """What `faulthandler` has written, up to the innermost frames."""
        self._log.seek(0)
        text, _, _ = self._log.read(10_000).decode(errors="replace").partition("Extension modules:")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f" ({'; '.join(lines[:5])})" if lines else ""


def own_folders() -> list[str]:
    """What Python must have on its path to find this code: a checkout's root, or nothing."""
    root = str(Path(__file__).parents[2])
    return [] if root in site.getsitepackages() else [root]


def serve(descriptor: int) -> None:
    """Runs tasks until this process's parent ends."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection = Connection(descriptor)
    job = b""
    worker: Any = None
    method: Method | None = None
    while True:
        task = connection.recv()
        if isinstance(task, bytes):
            job, method = task, None
            continue
        try:
            if method is None:
                worker = None  # first: two encoders may not fit
                make_worker, method = pickle.loads(job)
                worker = make_worker()
            for table in method(worker, task):
                connection.send(table)
        except Exception as error:
            method = None
            connection.send(storage.as_failure(error) or _portable(error))
        else:
            connection.send(None)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)  # in the middle of whatever it does


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, or if it cannot be pickled a RuntimeError."""
    text = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"in a worker process:\n{text}")
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text)
    return error
