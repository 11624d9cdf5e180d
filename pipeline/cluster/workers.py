"""What runs the tasks of a build: processes of this machine, or Ray."""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import pyarrow as pa

from pipeline.cluster.process import Method, Task
from pipeline.cluster.processes import Processes
from pipeline.config.build import BuildConfig
from pipeline.encoders.runtimes import PreparedEncoder

# Images that one machine reads without Ray; with more of them Ray's start hardly counts.
MOST_WITHOUT_RAY = 10_000


class _Workers(Protocol):
    @property
    def num_workers(self) -> int: ...

    def map(
        self, method: Method, tasks: Iterable[Task], *, make_worker: Callable[[], Any]
    ) -> Iterator[pa.Table]: ...


class Cluster:
    """Processes of this machine for as long as these will do, then Ray."""

    def __init__(self, config: BuildConfig, stack: contextlib.ExitStack) -> None:
        """stack: closes what the cluster opens."""
        self.config = config
        self._stack = stack
        self._on_ray = bool(config.address or config.gpus_per_worker)
        self._on_ray |= config.embed_on == "actors"
        self._workers: _Workers
        if self._on_ray:
            self._start_ray()
            return
        num_workers = config.workers or config.most_workers(cpus=os.cpu_count() or 1)
        processes = Processes(num_workers, threads=max(1, int(config.cpus_per_worker)))
        self._workers = stack.enter_context(contextlib.closing(processes))

    @property
    def num_workers(self) -> int:
        return self._workers.num_workers

    def map(
        self, method: Method, tasks: Iterable[Task], *, make_worker: Callable[[], Any]
    ) -> Iterator[pa.Table]:
        """Yields the tables of `method(worker, task)` for each task, as they come, in any order.

        `make_worker` is called once per process; it and `method` must be picklable. A task whose
        process dies is run again, and `method` must then yield as many tables as before. An
        InfinegError is raised here as it was raised there; any other error is a bug and stops
        everything.
        """
        return self._workers.map(method, tasks, make_worker=make_worker)

    def expect(self, num_images: int) -> None:
        """Goes over to Ray if so many are to be read."""
        if not self._on_ray and num_images > MOST_WITHOUT_RAY:
            self._start_ray()

    def share(self, encoder: PreparedEncoder) -> PreparedEncoder:
        """The encoder for workers; actors run it if the config says so, or the GPUs suggest it.

        A cluster with actors has fewer workers. Raises ConfigError if there can never be room for
        them.
        """
        if not self._on_ray and self.config.embed_on == "auto" and encoder.is_torch:
            import torch  # seconds, and not needed for an exported encoder

            if torch.cuda.is_available():
                self._start_ray()
        if self._on_ray:
            actors = importlib.import_module("pipeline.cluster.actors")
            self._workers, encoder = actors.start_encoder_actors(self._workers, encoder)
        return encoder

    def _start_ray(self) -> None:
        if not self._on_ray:
            self._stack.close()
        self._on_ray = True
        # Not at the top: that takes two seconds.
        ray_data = importlib.import_module("pipeline.cluster.ray_data")
        self._workers = self._stack.enter_context(ray_data.open_ray(self.config))


@contextlib.contextmanager
def open_cluster(config: BuildConfig) -> Iterator[Cluster]:
    """Starts workers, or joins those at `config.address`; ends what it has started."""
    with contextlib.ExitStack() as stack:
        yield Cluster(config, stack)
