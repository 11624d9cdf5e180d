"""Runs one function over many tasks on all workers of a Ray cluster, as a Ray Dataset.

Each task is a row of the data set: a read task of Ray costs its driver a millisecond and some
memory before the first one runs, a row costs neither.
"""

import contextlib
import logging
import math
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from more_itertools import chunked
from ray.exceptions import (
    AuthenticationError,
    NodeDiedError,
    OutOfMemoryError,
    WorkerCrashedError,
)
from ray.job_config import JobConfig
from ray.util.annotations import RayDeprecationWarning

from pipeline import storage
from pipeline.cluster.deaths import DIED, ending_with_children, named_deaths, watching_head
from pipeline.cluster.process import Method, Task, own_folders
from pipeline.cluster.processes import MOST_DEATHS, Attempt
from pipeline.config.build import BuildConfig
from pipeline.errors import InfinegError

# Read when Ray is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


_log = logging.getLogger(__name__)

# Little data crosses between processes; by default Ray would reserve 30 % of the memory.
_OBJECT_STORE_BYTES = 512 * 2**20
_BYTES_FOR_BATCHES = 64 * 2**20  # per worker, for batches sent to actors
# In a window: enough that waiting for its last task hardly counts.
_TASKS_PER_WORKER = 16

# The job of a worker process. In the module, because Ray runs many tasks in one process and passes
# nothing from one to the next; its actors do, but would open their encoder again for each window.
_jobs: dict[str, tuple[Any, Method]] = {}


@dataclass(frozen=True)
class RayCluster:
    """A running Ray, and how many of its CPUs and GPUs to use."""

    config: BuildConfig
    num_workers: int

    def map(
        self, method: Method, tasks: Iterable[Task], *, make_worker: Callable[[], Any]
    ) -> Iterator[pa.Table]:
        """See `workers.Cluster.map`.

        Tasks are taken from their iterator a window at a time, and a window is finished before the
        next one begins: the driver holds no more of them, however many there are.
        """
        job = ray.put((make_worker, method))
        for window in chunked(tasks, _TASKS_PER_WORKER * self.num_workers):
            yield from self._map_window([Attempt(task) for task in window], job)

    def _map_window(
        self, attempts: Sequence[Attempt], job: "ray.ObjectRef[Any]"
    ) -> Iterator[pa.Table]:
        while attempts:
            try:
                for number, result in self._run([each.task for each in attempts], job):
                    if result is None:
                        attempts[number].is_done = True
                    elif attempts[number].is_new():
                        yield result
            except (WorkerCrashedError, OutOfMemoryError) as died:  # of the last attempt of a task
                attempts = [each.carefully(died) for each in attempts if not each.is_done]
            except NodeDiedError:  # which is not the task's fault
                attempts = [each.anew() for each in attempts if not each.is_done]
            else:
                return

    def _run(
        self, tasks: Sequence[Task], job: "ray.ObjectRef[Any]"
    ) -> Iterator[tuple[int, pa.Table | None]]:
        """Each result with the number of its task; None when that is done."""
        blocks = [pa.table({"task": [pickle.dumps(each)]}) for each in enumerate(tasks)]
        run_tasks: Any = _run_tasks  # Ray's types know no generator with keyword arguments
        with warnings.catch_warnings():
            # Of `max_retries`, which has no other place; the default is to try for ever.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            results = ray.data.from_arrow(blocks).map_batches(
                run_tasks,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"job": [job]},  # in a list, or Ray would fetch the object for every task
                concurrency=min(self.num_workers, len(blocks)),  # Ray warns if it is larger
                num_cpus=self.config.cpus_per_worker,
                num_gpus=self.config.gpus_per_worker or None,
                max_retries=MOST_DEATHS - 1,
                max_calls=0,  # keeps a GPU process, with its encoder, for the next task
            )
        # Not iter_batches: with prefetch_batches=0 it leaves a thread behind for each call, with
        # more it holds a finished task's results back until the next task has finished.
        for bundle in results.iter_internal_ref_bundles():
            for block in ray.get(list(bundle.block_refs)):
                for pickled in block["result"].to_pylist():
                    result = pickle.loads(pickled)
                    if isinstance(result, InfinegError):
                        raise result
                    yield result


def _not_started(error: Exception) -> str:
    reason = " ".join(str(error).split())[:500] or type(error).__name__
    logs = os.path.join(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "session_latest", "logs")
    return (
        f"Ray does not start on this machine: {reason}. Its logs are in {logs}, whose folder "
        "RAY_TMPDIR sets; up to 10,000 images are built without Ray"
    )


@contextlib.contextmanager
def open_ray(config: BuildConfig) -> Iterator[RayCluster]:
    """Joins the cluster at `config.address`, or starts one on this machine and ends it."""
    is_own = config.address in (None, "local")
    debug = _log.isEnabledFor(logging.DEBUG)
    options: dict[str, Any] = {
        "logging_level": logging.INFO if debug else logging.ERROR,
        "log_to_driver": debug,
    }
    if is_own:
        # Ray must report all that is asked for, even if the machine has fewer.
        num_actors = (config.actors or 1) if config.embed_on == "actors" else 0
        asked = (config.workers or 1) * config.cpus_per_worker + num_actors * config.cpus_per_actor
        num_cpus = max(os.cpu_count() or 1, math.ceil(asked))
        options |= {
            "address": "local",  # or Ray would join any cluster on this machine
            "num_cpus": num_cpus,
            "include_dashboard": False,
            "object_store_memory": _object_store_bytes(config, num_cpus),
        }
    else:
        options |= {"address": config.address}
    try:
        with _own_code() as job_config:
            context = ray.init(**options, job_config=job_config)
    except Exception as error:
        # Of a Ray that cannot start: it raises errors of any kind, Exception itself too.
        if is_own:
            raise InfinegError(_not_started(error)) from error
        if not isinstance(error, ConnectionError | AuthenticationError):
            raise
        raise InfinegError(
            f"cannot join the Ray cluster at {config.address}: {error}. Is it there? If it wants a "
            "token: export RAY_AUTH_MODE=token, with RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from error
    try:
        _configure_ray_data(debug)
        # Without these Ray hangs for up to a minute, or ends this process without a message.
        with (
            ending_with_children({"raylet", "gcs_server"}, f"infineg: {DIED}\n"),
            watching_head(None if is_own else config.address),
            named_deaths(),
        ):
            cluster_resources: Any = ray.cluster_resources
            resources = cluster_resources()
            if not is_own:
                dashboard = context.dashboard_url  # HOST:PORT, or empty if the cluster runs none
                _log.info(
                    "joined the Ray cluster at %s: %d nodes, %g CPUs, %g GPUs; %s",
                    config.address, len(alive_nodes()),
                    resources.get("CPU", 0), resources.get("GPU", 0),
                    f"dashboard: http://{dashboard}" if dashboard else "it runs no dashboard",
                )  # fmt: skip
            num_cpus = resources.get("CPU", 1)
            num_workers = config.workers or config.most_workers(cpus=num_cpus)
            yield RayCluster(config, num_workers)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_code() -> Iterator[JobConfig]:
    """While Ray starts: its workers import this code, and none of the user's folders.

    By default Ray puts the working folder and the script's folder first on the path of its workers.
    A user's own `train.py` or `pipeline/` there would be imported in place of ours.
    """
    before = sys.path
    script_dir = os.path.dirname(os.path.realpath(sys.argv[0]))
    # Another list: a thread that imports something meanwhile would skip an entry of a changed one.
    sys.path = [path for path in before if path != script_dir]
    try:
        # Like a Ray client, whose working folder is not on the cluster.
        yield JobConfig(_client_job=True, _py_driver_sys_path=own_folders())
    finally:
        sys.path = before


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's description of each machine that is running now."""
    nodes: Any = ray.nodes  # untyped
    return [node for node in nodes() if node["Alive"]]


def _object_store_bytes(config: BuildConfig, num_cpus: int) -> int:
    """Generous, since pages that nothing is written to take no memory."""
    if config.object_store_gb is not None:
        return int(config.object_store_gb * 1e9)
    if config.embed_on == "worker":
        return _OBJECT_STORE_BYTES
    num_workers = config.workers or config.most_workers(cpus=num_cpus)
    return _OBJECT_STORE_BYTES + num_workers * _BYTES_FOR_BATCHES


def _configure_ray_data(debug: bool) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # infineg has its own
    context.max_errored_blocks = 0  # an error in a block is a bug, see `_run_tasks`
    context.target_max_block_size = 1  # each table is passed on at once
    # One operator does all the work; reserving half of the CPUs for others would idle them.
    context.op_resource_reservation_enabled = False
    if not debug:
        logging.getLogger("ray").setLevel(logging.ERROR)
        # It logs the error of a task, which is raised here, too.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _run_tasks(batch: pa.Table, *, job: Sequence["ray.ObjectRef[Any]"]) -> Iterator[pa.Table]:
    """Runs inside a worker process. An InfinegError is a result, since Ray would reword it."""
    try:
        worker, method = _open_job(job[0])
        for pickled in batch["task"]:
            number, task = pickle.loads(pickled.as_py())
            for table in method(worker, task):
                yield _result((number, table))
            yield _result((number, None))
    except Exception as error:
        failure = storage.as_failure(error)
        if failure is None:
            raise
        yield _result(failure)


def _open_job(job: "ray.ObjectRef[Any]") -> tuple[Any, Method]:
    """The worker of this process and its method."""
    if job.hex() not in _jobs:
        _jobs.clear()  # first: two encoders may not fit on a GPU
        make_worker, method = ray.get(job)
        _jobs[job.hex()] = make_worker(), method
    return _jobs[job.hex()]


def _result(result: tuple[int, pa.Table | None] | InfinegError) -> pa.Table:
    """Pickled, since Ray would want one schema for all results."""
    return pa.table({"result": [pickle.dumps(result)]})
