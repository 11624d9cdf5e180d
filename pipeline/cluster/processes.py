"""Runs one function over many tasks in processes of this machine, without Ray.

Ray takes ten seconds to start, and some more per worker, which is longer than a small build.
"""

import itertools
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import pyarrow as pa

from pipeline.cluster.process import Died, Method, Process, Task, Template
from pipeline.errors import InfinegError

_log = logging.getLogger(__name__)

MOST_DEATHS = 3  # of the processes that run one task
_MOST_CHARACTERS = 300  # of a task, in messages


class Processes:
    """Processes of one template, each with a task at a time."""

    def __init__(self, num_workers: int, *, threads: int) -> None:
        """threads: of the libraries for linear algebra, in each process."""
        self.num_workers = num_workers
        self._template = Template(threads=threads)  # it imports meanwhile
        self._idle: list[Process] = []

    def close(self) -> None:
        while self._idle:
            self._idle.pop().kill()
        self._template.close()

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
                    process = self._idle.pop() if self._idle else Process(self._template)
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
