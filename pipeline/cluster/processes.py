"""Runs one function over many tasks in processes of this machine, without Ray.

Ray takes ten seconds to start, and some more per worker, which is longer than a small build.
"""

import contextlib
import faulthandler
import itertools
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
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from pipeline.errors import InfinegError

_MOST_DEATHS = 3  # of the processes that run one task
_SERVE = "from pipeline.cluster.processes import serve; serve({})"

Method = Callable[[Any, Any], Iterator[pa.Table]]


@dataclass
class _Attempt:
    """A task, and what processes that have died did of it."""

    task: BaseModel
    num_tables: int = 0  # passed on
    num_deaths: int = 0
    num_seen: int = 0  # of this process


class Processes:
    """Processes that are running, each with a task at a time."""

    def __init__(self, num_workers: int, *, threads: int) -> None:
        """threads: of the libraries for linear algebra, in each process."""
        self.num_workers = num_workers
        self._threads = threads
        self._jobs = itertools.count()
        self._idle = [_Process(threads) for _ in range(num_workers)]  # which import meanwhile

    def close(self) -> None:
        while self._idle:
            self._idle.pop().kill()

    def map(
        self, method: Method, tasks: Iterable[BaseModel], *, make_worker: Callable[[], Any]
    ) -> Iterator[pa.Table]:
        """See `workers.Cluster.map`."""
        number, job = next(self._jobs), pickle.dumps((make_worker, method))
        waiting: Iterator[_Attempt] = map(_Attempt, tasks)
        running: dict[Connection, tuple[_Process, _Attempt]] = {}
        try:
            while True:
                for attempt in itertools.islice(waiting, self.num_workers - len(running)):
                    process = self._idle.pop() if self._idle else _Process(self._threads)
                    running[process.connection] = process, attempt
                    process.send(number, job, attempt)
                if not running:
                    return
                for connection in wait(list(running)):
                    process, attempt = running[connection]  # type: ignore[index]
                    try:
                        result = process.receive()
                    except (EOFError, ConnectionError):
                        del running[process.connection]
                        again = process.died(attempt)
                        waiting = itertools.chain([again], waiting)
                        continue
                    if isinstance(result, Exception):
                        raise result
                    if result is None:
                        del running[process.connection]
                        self._idle.append(process)
                        continue
                    attempt.num_seen += 1
                    if attempt.num_seen > attempt.num_tables:
                        attempt.num_tables += 1
                        yield result
        finally:
            for process, _ in running.values():
                process.kill()


class _Process:
    """A running Python that waits for tasks, and ends when this process does."""

    def __init__(self, threads: int) -> None:
        self.connection, theirs = Pipe()
        self._job: int | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        path = os.pathsep.join([*own_folders(), os.environ.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        )
        with theirs:
            self._popen = subprocess.Popen(
                # Safe: the working folder and the script's folder are not on its path.
                [sys.executable, "-P", "-c", _SERVE.format(theirs.fileno())],
                stdin=subprocess.PIPE,  # its end tells that this process has ended
                stdout=self._log, stderr=self._log,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
            )  # fmt: skip

    def send(self, number: int, job: bytes, attempt: _Attempt) -> None:
        attempt.num_seen = 0
        with contextlib.suppress(ConnectionError):  # which `receive` will notice
            if number != self._job:
                self._job = number
                self.connection.send(job)
            self.connection.send(attempt.task)

    def receive(self) -> pa.Table | Exception | None:
        """A table, an error, or that the task is done."""
        return self.connection.recv()

    def died(self, attempt: _Attempt) -> _Attempt:
        """The next attempt. Raises InfinegError if it would be one too many."""
        code = self._popen.wait()
        attempt.num_deaths += 1
        last_words = self._last_words()
        self.kill()
        if attempt.num_deaths < _MOST_DEATHS:
            return attempt
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise InfinegError(
            f"{_MOST_DEATHS} worker processes died one after the other of the same task, the last "
            f"by {how}{last_words}: {attempt.task}. Perhaps memory is short (see `dmesg`): then "
            "set build.workers lower. Run the same command again: it resumes"
        )

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()
        for file in (self._popen.stdin, self._log, self.connection):
            assert file is not None
            file.close()

    def _last_words(self) -> str:
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
            connection.send(_portable(error))
        else:
            connection.send(None)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)  # in the middle of whatever it does


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, or if it cannot be pickled a RuntimeError."""
    text = "".join(traceback.format_exception(error))
    try:
        if not isinstance(error, InfinegError):
            error.add_note(f"in a worker process:\n{text}")
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text)
    return error
