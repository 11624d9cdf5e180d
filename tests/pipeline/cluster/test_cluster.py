"""A local Ray: errors that it reports of machines and of code, and errors of workers."""

from collections.abc import Iterator

import pyarrow as pa
import pytest
from ray.exceptions import NodeDiedError, RayTaskError

from pipeline.cluster.deaths import named_deaths
from pipeline.cluster.ray_data import open_ray
from pipeline.config.build import BuildConfig
from pipeline.dataset.lease import Held
from pipeline.errors import InfinegError, TooManyRejects
from pipeline.worker.span import ReadTask


def test_death_of_a_node_says_how_to_go_on() -> None:
    with pytest.raises(InfinegError, match=r"again: it resumes\. Ray says: node-7"), named_deaths():
        raise NodeDiedError("node-7 is gone")


def test_error_in_the_code_of_a_task_stays_what_it_is() -> None:
    bug = RayTaskError("build", "Traceback", ZeroDivisionError())
    with pytest.raises(RayTaskError) as caught, named_deaths():
        raise bug
    assert caught.value is bug


@pytest.mark.timeout(120)
def test_cluster_of_others_on_this_machine_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that `ray start` has left running is found in the same way as this address."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with open_ray(BuildConfig(workers=3)) as cluster:
        assert cluster.num_workers == 3


@pytest.mark.timeout(120)
def test_error_of_a_worker_is_raised_as_it_was_there() -> None:
    def make() -> str:  # in here, and Ray sends its code along
        return "worker"

    def fail_to_make() -> str:
        raise Held("no worker")

    def run(worker: str, task: ReadTask) -> Iterator[pa.Table]:
        yield pa.table({"by": [worker], "task": [task.source]})
        if task.source == "bad":
            raise TooManyRejects("all of it")

    good, bad = (ReadTask(source=name, partitions=()) for name in ("good", "bad"))
    with open_ray(BuildConfig(workers=1)) as cluster:
        tables = list(cluster.map(run, [good, good], make_worker=make))
        assert [table.to_pylist() for table in tables] == [[{"by": "worker", "task": "good"}]] * 2
        with pytest.raises(TooManyRejects, match=r"^all of it$"):
            list(cluster.map(run, [bad], make_worker=make))
        with pytest.raises(Held, match=r"^no worker$"):
            list(cluster.map(run, [good], make_worker=fail_to_make))


def test_cluster_that_cannot_be_joined_is_named_with_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr("ray.init", refuse)
    config = BuildConfig(address="node-1:6379")
    with (
        pytest.raises(InfinegError, match=r"node-1:6379: .*RAY_AUTH_MODE=token"),
        open_ray(config),
    ):
        pass
