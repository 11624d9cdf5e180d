"""A process of this machine that does tasks: a fork of one that has imported all it needs.

To import takes 2 s of a core and 300 MB; a fork takes milliseconds, and shares that memory.
"""

import contextlib
import faulthandler
import gc
import importlib
import os
import pickle
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from pipeline import storage

# By name: these modules import this one.
_IMPORTED = ["pipeline.worker.span", "pipeline.mine.worker"]
_FORK = "from pipeline.cluster.process import fork_when_asked; fork_when_asked({}, {})"
_NUMBER_BYTES = 8

Method = Callable[[Any, Any], Iterator[Any]]


class Task(BaseModel, frozen=True):
    """What a worker process is to do."""

    careful: bool = False  # processes have died of it: read in another one, see `worker.careful`


class Died(Exception):
    """A process has ended: how, and its last words."""


class Template:
    """A running Python that has imported what processes need, and is forked for each of them."""

    def __init__(self, *, threads: int) -> None:
        """threads: of the libraries for linear algebra, in each process."""
        self._threads = threads
        self._num_forked = 0
        self._begin()

    def _begin(self) -> None:
        self._num_before = self._num_forked  # by templates that have ended
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._socket, theirs = socket.socketpair()
        path = [*own_folders(), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self._popen = subprocess.Popen(
                # Safe: the working folder and the script's folder are not on its path.
                [sys.executable, "-P", "-c", _FORK.format(theirs.fileno(), _IMPORTED)],
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                pass_fds=[theirs.fileno()],
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": str(self._threads)},
            )  # fmt: skip

    def fork(self, *descriptors: int) -> int:
        """Begins a process with the arguments of `serve`; returns a number to `end` it by."""
        number = (self._num_forked + 1).to_bytes(_NUMBER_BYTES)
        try:
            socket.send_fds(self._socket, [number], descriptors)
        except ConnectionError:
            self.close()
            self._begin()
            socket.send_fds(self._socket, [number], descriptors)
        self._num_forked += 1
        return self._num_forked

    def end(self, number: int) -> str:
        """Kills a process unless it has ended; says how it has."""
        of_parent = "the end of the one that it was forked from"
        if number <= self._num_before:
            return of_parent
        try:
            self._socket.sendall(number.to_bytes(_NUMBER_BYTES))
            status = self._socket.recv(_NUMBER_BYTES)
        except ConnectionError:
            status = b""
        if not status:
            return f"{of_parent}{_last_words(self._log)}"
        code = os.waitstatus_to_exitcode(int.from_bytes(status))
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """Leaves running what it was forked for."""
        self._popen.kill()
        self._popen.wait()
        self._socket.close()
        self._log.close()


class Process:
    """A running Python that does tasks, one at a time, and ends when this process does."""

    def __init__(self, template: Template) -> None:
        self.connection, theirs = Pipe()
        self._job = b""
        self._how = ""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        end_of_lifeline, self._lifeline = os.pipe()
        self._template = template
        try:
            self._number = template.fork(theirs.fileno(), end_of_lifeline, self._log.fileno())
        finally:
            theirs.close()
            os.close(end_of_lifeline)

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
            raise Died(self.kill()) from None
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self) -> str:
        """Ends it if it has not ended; says how it has, with its last words."""
        if not self._how:
            os.close(self._lifeline)
            self._how = self._template.end(self._number) + _last_words(self._log)
            self._log.close()
            self.connection.close()
        return self._how


def _last_words(log: IO[bytes]) -> str:
    """What `faulthandler` has written, up to the innermost frames."""
    log.seek(0)
    text, _, _ = log.read(10_000).decode(errors="replace").partition("Extension modules:")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f" ({'; '.join(lines[:5])})" if lines else ""


def own_folders() -> list[str]:
    """What Python must have on its path to find this code: a checkout's root, or nothing."""
    root = str(Path(__file__).parents[2])
    return [] if root in site.getsitepackages() else [root]


def fork_when_asked(descriptor: int, imported: list[str]) -> None:
    """Runs a template: forks and ends processes until the one that has begun it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    for name in imported:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork would copy what it looks at
    pids: dict[bytes, int] = {}
    with socket.socket(fileno=descriptor) as asked:
        while True:
            number, descriptors, _, _ = socket.recv_fds(asked, _NUMBER_BYTES, 3)
            if not number:
                return
            if not descriptors:
                pid = pids.pop(number)
                os.kill(pid, signal.SIGKILL)
                asked.sendall(os.waitpid(pid, 0)[1].to_bytes(_NUMBER_BYTES))
            elif pid := os.fork():
                pids[number] = pid
                for each in descriptors:
                    os.close(each)
            else:
                asked.detach()
                os.close(descriptor)
                _serve_alone(*descriptors)


def _serve_alone(connection: int, lifeline: int, log: int) -> None:
    """Nothing of the template is run after it."""
    try:
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        faulthandler.enable()
        threading.Thread(target=_end_with_parent, args=[lifeline], daemon=True).start()
        serve(Connection(connection))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


def serve(connection: "Connection[Any, Any]") -> None:
    """Runs tasks."""
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


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # at its end
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
