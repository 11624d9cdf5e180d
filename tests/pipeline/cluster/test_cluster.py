"""A local Ray: errors that it reports of machines and of code, and errors of workers."""

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray.data
from ray.exceptions import NodeDiedError, RayTaskError

from pipeline.cluster.deaths import named_deaths
from pipeline.cluster.ray_data import RayCluster, open_ray
from pipeline.config.build import BuildConfig
from pipeline.dataset.lease import Held
from pipeline.errors import InfinegError, TooManyRejects
from pipeline.worker.span import ReadTask
from support.builds import Built, sidecar_rows


def test_death_of_a_node_says_how_to_go_on() -> None:
    with pytest.raises(InfinegError, match=r"again: it resumes\. Ray says: node-7"), named_deaths():
        raise NodeDiedError("node-7 is gone")


def test_error_in_the_code_of_a_task_stays_what_it_is() -> None:
    bug = RayTaskError("build", "Traceback", ZeroDivisionError())
    with pytest.raises(RayTaskError) as caught, named_deaths():
        raise bug
    assert caught.value is bug


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


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A Ray of its own: another on this machine, as `ray start` leaves it, is not joined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:9")
        with open_ray(BuildConfig(workers=1)) as cluster:
            assert cluster.num_workers == 1
            yield cluster


@pytest.mark.timeout(120)
def test_error_of_a_worker_is_raised_as_it_was_there(cluster: RayCluster) -> None:
    def make() -> str:  # in here, and Ray sends its code along
        return "worker"

    def fail_to_make() -> str:
        raise Held("no worker")

    def run(worker: str, task: ReadTask) -> Iterator[pa.Table]:
        yield pa.table({"by": [worker], "task": [task.source]})
        if task.source == "bad":
            raise TooManyRejects("all of it")

    good, bad = (ReadTask(source=name, partitions=()) for name in ("good", "bad"))
    tables = list(cluster.map(run, [good, good], make_worker=make))
    assert [table.to_pylist() for table in tables] == [[{"by": "worker", "task": "good"}]] * 2
    with pytest.raises(TooManyRejects, match=r"^all of it$"):
        list(cluster.map(run, [bad], make_worker=make))
    with pytest.raises(Held, match=r"^no worker$"):
        list(cluster.map(run, [good], make_worker=fail_to_make))


# Ray Data leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("cluster")
def test_ray_data_reads_the_shards_as_they_are(built: Built) -> None:
    paths = [str(built.root / shard.path) for shard in built.generation.shards]
    blocks = ray.data.read_webdataset(paths, file_extensions=["tar"], override_num_blocks=2)
    rows = blocks.take_all()
    sidecars = sidecar_rows(built.root).select(["key", "label"]).to_pylist()
    expected = {row["key"]: ["", "cat"].index(row["label"]) for row in sidecars}
    assert sorted((row["__key__"], row["cls"]) for row in rows) == sorted(expected.items())
    assert all(row["jpg"].ndim == 3 and row["jpg"].dtype == np.uint8 for row in rows)
    gc.collect()  # here, where its warnings are known, and not in the middle of another test


def test_ray_that_does_not_start_is_one_message_with_the_place_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", f"{tmp_path}/file")  # Ray cannot make its folder there
    with (
        pytest.raises(InfinegError, match="Ray does not start") as raised,
        open_ray(BuildConfig(address="local", workers=1)),
    ):
        pass
    assert f"{tmp_path}/file/ray/session_latest/logs" in str(raised.value)
