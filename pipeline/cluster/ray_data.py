"""Ray: runs one function over many tasks on every worker of a cluster, as a Ray Dataset.

The only file that knows Ray, but for `actors`. Tasks are rows of a table of descriptors: a read
task of Ray costs its driver a millisecond and some memory before the first one runs, a row costs
neither.
"""

import contextlib
import logging
import math
import os
import site
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from more_itertools import chunked
from pydantic import BaseModel
from ray.exceptions import AuthenticationError, RayError, RayTaskError
from ray.job_config import JobConfig

from pipeline import errors
from pipeline.config.build import BuildConfig
from pipeline.dataset.lease import _children
from pipeline.errors import InfinegError

# Read when Ray is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


_log = logging.getLogger(__name__)


# What crosses between processes is small; by default Ray would set aside 30 % of the memory.
_OBJECT_STORE_BYTES = 512 * 2**20


_BYTES_FOR_BATCHES = 64 * 2**20  # a worker's, on their way to an actor


# A worker at once: so many that the wait for the last of them hardly counts.
_TASKS_PER_WORKER = 16


_LOOK_S = 3.0  # between looks at the head of a cluster


_MISSED = 3  # looks in vain before it is told


_DIED = (
    "a process of Ray was killed or has crashed, perhaps for want of memory (see `dmesg`, "
    "/tmp/ray/session_latest/logs). Run the same command again: it resumes."
)


# One worker a process and job: a task finds what an earlier task of the process has made.
_workers: dict[str, Any] = {}


@dataclass(frozen=True)
class Cluster:
    """A running Ray, and how many workers of what size to use of it."""

    config: BuildConfig
    num_workers: int

    def map(
        self,
        method: Callable[[Any, Any], Iterator[pa.Table]],
        tasks: Iterable[BaseModel],
        *,
        make_worker: Callable[[], Any],
    ) -> Iterator[pa.Table]:
        """Yields what `method(worker, task)` yields for each task, as it comes, in any order.

        Tasks are taken from their iterator a window at a time, and a window is done before the
        next one begins: the driver holds no more of them, however many there are.

        `make_worker` is called once a process. A task whose process dies is run again, so that
        `method` must yield as many tables then. An InfinegError comes back as it was raised;
        any other error is a bug and stops everything.
        """
        shared = ray.put((make_worker, method))
        for window in chunked(tasks, _TASKS_PER_WORKER * self.num_workers):
            yield from self._map_window(window, shared)

    def _map_window(
        self, tasks: Sequence[BaseModel], shared: "ray.ObjectRef[Any]"
    ) -> Iterator[pa.Table]:
        encoded = pa.table({"task": [task.model_dump_json() for task in tasks]})
        blocks = [encoded.slice(i, 1) for i in range(len(tasks))]
        run_tasks: Any = _run_tasks  # Ray's types know no generator with keyword arguments
        results = ray.data.from_arrow(blocks).map_batches(
            run_tasks,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"shared": [shared], "job": shared.hex(), "task_type": type(tasks[0])},
            concurrency=min(self.num_workers, len(blocks)),  # Ray warns of more
            num_cpus=self.config.cpus_per_worker,
            num_gpus=self.config.gpus_per_worker or None,
            max_calls=0,  # keeps a GPU process, with its encoder, for the next task
        )
        batches: Any = results.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )
        for batch in batches:
            for result in batch.to_pylist():
                if result["error"]:
                    raise getattr(errors, result["error"])(result["payload"].decode())
                yield pa.ipc.open_stream(result["payload"]).read_all()


@contextlib.contextmanager
def open_cluster(config: BuildConfig) -> Iterator[Cluster]:
    """Joins the cluster at `config.address`, or starts one on this machine and ends it after."""
    debug = _log.isEnabledFor(logging.DEBUG)
    options: dict[str, Any] = {
        "logging_level": logging.INFO if debug else logging.ERROR,
        "log_to_driver": debug,
    }
    if config.address is None:
        num_cpus = max(os.cpu_count() or 1, _cpus_asked(config))
        options |= {
            "address": "local",  # else Ray joins any cluster that others run on this machine
            "num_cpus": num_cpus,
            "include_dashboard": False,
            "object_store_memory": _object_store_bytes(config, num_cpus),
        }
    else:
        options |= {"address": config.address}
    try:
        with _own_code() as job_config:
            context = ray.init(**options, job_config=job_config)
    except (ConnectionError, AuthenticationError) as error:
        raise InfinegError(
            f"cannot join the Ray cluster at {config.address}: {error}. Is it there? If it wants a "
            "token: export RAY_AUTH_MODE=token, with RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from error
    try:
        _configure_ray_data(debug)
        # Without them Ray hangs for up to a minute, or ends this process without a word.
        with (
            ending_with_children({"raylet", "gcs_server"}, f"infineg: {_DIED}\n"),
            _watching_head(config.address),
            named_deaths(),
        ):
            cluster_resources: Any = ray.cluster_resources
            resources = cluster_resources()
            if config.address is not None:
                _tell_of_cluster(config.address, resources, context.dashboard_url)
            num_cpus = resources.get("CPU", 1)
            num_workers = config.workers or config.most_workers(cpus=num_cpus)
            yield Cluster(config, num_workers)
    finally:
        _workers.clear()
        ray.shutdown()


@contextlib.contextmanager
def _own_code() -> Iterator[JobConfig]:
    """While Ray starts: its workers import this code, and none of the user's folders.

    By default Ray puts the working folder and the script's folder first on the path of its workers.
    A user's own `train.py` or `pipeline/` there would be imported in place of ours.
    """
    root = str(Path(__file__).parents[2])
    paths = [] if root in site.getsitepackages() else [root]  # else a checkout
    before = list(sys.path)
    script_dir = os.path.dirname(os.path.realpath(sys.argv[0]))
    sys.path[:] = [path for path in before if path != script_dir]
    try:
        # Like a Ray client, whose working folder is not on the cluster.
        yield JobConfig(_client_job=True, _py_driver_sys_path=paths)
    finally:
        sys.path[:] = before


def _tell_of_cluster(address: str, resources: Mapping[str, float], dashboard: str | None) -> None:
    """`dashboard` is HOST:PORT, or nothing where the cluster runs none."""
    _log.info(
        "joined the Ray cluster at %s: %d nodes, %g CPUs, %g GPUs; %s",
        address,
        len(alive_nodes()),
        resources.get("CPU", 0),
        resources.get("GPU", 0),
        f"dashboard: http://{dashboard}" if dashboard else "it runs no dashboard",
    )


def alive_nodes() -> list[dict[str, Any]]:
    """What Ray knows of each machine that is there now."""
    nodes: Any = ray.nodes  # without types
    return [node for node in nodes() if node["Alive"]]


def _cpus_asked(config: BuildConfig) -> int:
    """What a Ray of our own must have, more than the machine has or not."""
    num_actors = (config.actors or 1) if config.embed_on == "actors" else 0
    of_workers = (config.workers or 1) * config.cpus_per_worker
    return math.ceil(of_workers + num_actors * config.cpus_per_actor)


def _object_store_bytes(config: BuildConfig, num_cpus: int) -> int:
    """Pages that nothing is written to take no memory."""
    if config.object_store_gb is not None:
        return int(config.object_store_gb * 1e9)
    if config.embed_on == "worker":
        return _OBJECT_STORE_BYTES
    num_workers = config.workers or config.most_workers(cpus=num_cpus)
    return _OBJECT_STORE_BYTES + num_workers * _BYTES_FOR_BATCHES


@contextlib.contextmanager
def _watching_head(address: str | None) -> Iterator[None]:
    """Tells when the head of a cluster that was joined is gone: Ray waits, and then ends us."""
    if address is None or address.startswith("ray://"):  # a client is told at once
        yield
        return
    is_over = threading.Event()
    gcs_address: str = ray.get_runtime_context().gcs_address
    host, _, port = gcs_address.rpartition(":")

    def watch() -> None:
        num_missed = 0
        while not is_over.wait(_LOOK_S):
            try:
                socket.create_connection((host.strip("[]"), int(port)), _LOOK_S).close()
                num_missed = 0
            except OSError:
                num_missed += 1
            if num_missed == _MISSED:
                _log.warning(
                    "the head of the Ray cluster at %s does not answer. Unless it is back within "
                    "a minute Ray ends this process; run the same command again then, on any "
                    "cluster: it resumes", address,
                )  # fmt: skip

    threading.Thread(target=watch, name="head watch", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


@contextlib.contextmanager
def named_deaths() -> Iterator[None]:
    """Raises InfinegError for an error of Ray's that is not an error in a task's code.

    Machines and processes die; that is no bug, and a run after it resumes.
    """
    try:
        yield
    except RayTaskError:
        raise
    except RayError as error:
        raise InfinegError(f"{_DIED} Ray says: {error}") from error


def _configure_ray_data(debug: bool) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # infineg has its own
    context.max_errored_blocks = 0  # an error in a block is a bug, see `_run_tasks`
    context.target_max_block_size = 1  # each table is handed on at once, and not with the next
    # One operator does all the work; keeping half of the CPUs for others would idle them.
    context.op_resource_reservation_enabled = False
    if not debug:
        for name in ("ray.data", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _run_tasks(
    batch: pa.Table,
    *,
    shared: Sequence["ray.ObjectRef[Any]"],
    job: str,
    task_type: type[BaseModel],
) -> Iterator[pa.Table]:
    """Runs inside a worker process. An expected failure is a result: Ray would reword it."""
    make_worker, method = ray.get(shared[0])
    if job not in _workers:
        _workers.clear()
        _workers[job] = make_worker()
    for encoded in batch["task"]:
        try:
            for table in method(_workers[job], task_type.model_validate_json(encoded.as_py())):
                yield _result(table)
        except InfinegError as error:
            yield pa.table({"error": [type(error).__name__], "payload": [str(error).encode()]})
            return


def _result(table: pa.Table) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.table({"error": [""], "payload": [sink.getvalue().to_pybytes()]})


@contextlib.contextmanager
def ending_with_children(names: Set[str], message: str) -> Iterator[None]:
    """Within the block this process ends, with exit code 1, when a child of such a name does.

    For what cannot go on without the child, and would hang. Sees the children of Linux alone, and
    those alone that are there at the beginning.
    """
    is_over = threading.Event()

    def wait_for(pid: int) -> None:
        with contextlib.suppress(ChildProcessError):  # another has waited for it
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if not is_over.is_set():
            sys.stderr.write(message)
            sys.stderr.flush()
            os._exit(1)  # at once: whatever could be asked to end well hangs

    for pid, name in _children():
        if name in names:
            threading.Thread(
                target=wait_for, args=(pid,), name=f"{name} watch", daemon=True
            ).start()
    try:
        yield
    finally:
        is_over.set()
