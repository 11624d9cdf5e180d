"""Builds on several Ray nodes, hosts of a network that share an object store, which lose one."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from pipeline.curate.verify import verify_dataset
from support.builds import Built, built_inline, config_of, file_hashes, squares, write_config
from support.kills import S3Events
from support.processes import Host, Network, network, run_infineg, running_infineg, wait_until
from support.ray_nodes import RayNodes, ray_nodes
from support.servers import S3Server, run_s3_server
from support.train_runs import checkpoint_steps, losses_logged, write_dataset, write_run_config

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]  # each node takes seconds to start

SECTIONS: dict[str, Any] = {"build": {"workers": 3, "lease_wait_s": 100}}


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network(3) as net:
        yield net


@pytest.fixture(scope="module")
def s3_server(net: Network) -> Iterator[S3Server]:
    """Where the hosts reach it."""
    with run_s3_server(net.outside) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built in this process, on a disk."""
    entries = [squares(num_pictures=6_000, per_partition=300)]
    return built_inline(tmp_path_factory.mktemp("undisturbed") / "data", entries, **SECTIONS)


@contextlib.contextmanager
def building_on(cluster: RayNodes, config: Path, log: Path) -> Iterator[Popen[bytes]]:
    """`infineg build` on the head."""
    arguments, prefix = ("build", config, "--address", cluster.address), cluster.hosts[0].prefix
    with running_infineg(*arguments, log=log, prefix=prefix, **cluster.env) as command:
        yield command


def num_parts(events: S3Events) -> int:
    return sum(e.startswith("+parts/squares/") and e.endswith(".json") for e in events.poll())


def assert_as_undisturbed(events: S3Events, expected: Built) -> None:
    assert file_hashes(events.root) == file_hashes(expected.root)
    assert verify_dataset(events.root).problems == []
    written = [e for e in events.poll() if e.startswith("+parts/") and e.endswith(".json")]
    assert len(written) == len(set(written)), "a part that was committed is not built again"


def new_build(s3_server: S3Server, expected: Built, tmp_path: Path) -> tuple[Path, S3Events]:
    """The config of a data set that is not there yet, and what will happen to its files."""
    events = S3Events(s3_server.new_root(), s3_server)
    config = config_of(events.root, expected.entries, **SECTIONS)
    return write_config(tmp_path / "config.yaml", config), events


@pytest.mark.usefixtures("s3_root")
def test_a_build_goes_on_without_a_node_and_resumes_elsewhere_without_the_head(
    undisturbed: Built, s3_server: S3Server, net: Network, tmp_path: Path
) -> None:
    """Two builds: one of three nodes is killed in the first, the head in the second."""
    config, events = new_build(s3_server, undisturbed, tmp_path)
    logs = [tmp_path / f"log-{number}" for number in range(3)]
    with ray_nodes(net.hosts) as cluster:
        with building_on(cluster, config, logs[0]) as command:
            wait_until(lambda: num_parts(events) > 1, command, logs[0])
            wait_until(lambda: all(map(cluster.works, range(3))), command, logs[0])
            cluster.kill(2)
            assert command.wait(timeout=200) == 0, logs[0].read_text()
        assert "3 nodes, 3 CPUs, 0 GPUs; it runs no dashboard" in logs[0].read_text()
        assert_as_undisturbed(events, undisturbed)

        config, events = new_build(s3_server, undisturbed, tmp_path)
        with building_on(cluster, config, logs[1]) as command:
            wait_until(lambda: num_parts(events) > 2, command, logs[1])
            cluster.kill(0)
            assert command.wait(timeout=100) != 0, "Ray gives up"
    done = num_parts(events)
    assert f"head of the Ray cluster at {cluster.address} does not" in logs[1].read_text()
    assert "Traceback" not in logs[1].read_text()
    with ray_nodes(net.hosts[:2]) as other, building_on(other, config, logs[2]) as command:
        assert command.wait(timeout=200) == 0, logs[2].read_text()
    assert done < num_parts(events)
    assert_as_undisturbed(events, undisturbed)


@pytest.mark.parametrize("has_autoscaler", [False, True])
def test_gpus_are_refused_or_waited_for_as_the_cluster_can_grow_or_not(
    has_autoscaler: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_autoscaler:
        monkeypatch.setenv("RAY_NODE_TYPE_NAME", "head")  # as KubeRay and `ray up` set it
    settings = {"embed_on": "actors", "workers": 1}
    config = config_of(tmp_path / "data", [squares(num_pictures=40)], build=settings)
    path, log = write_config(tmp_path / "config.yaml", config), tmp_path / "log"
    hosts = [Host("127.0.0.1")] * 2
    with (
        ray_nodes(hosts, num_started=1) as cluster,
        building_on(cluster, path, log) as command,
    ):
        if has_autoscaler:
            wait_until(lambda: "waiting for its autoscaler" in log.read_text(), command, log)
            # The head has one CPU, which the actor would have; a machine with both comes.
            cluster.start(num_cpus=2, num_gpus=1)
            assert command.wait(timeout=400) == 0, log.read_text()
        else:
            assert command.wait(timeout=300) == 2
    assert "needs 1 actors of 1 GPUs and 1 CPUs" in log.read_text()
    assert "Ray reports 0 GPUs and 1 CPUs" in log.read_text()
    assert any((tmp_path / "data").rglob("*.json")) == has_autoscaler, "before any work"


def test_a_training_goes_on_with_the_worker_that_is_left(net: Network, tmp_path: Path) -> None:
    """One of two, on two nodes; the batches do not depend on who reads them."""
    dataset, run, log = tmp_path / "dataset", tmp_path / "run", tmp_path / "log"
    undisturbed = tmp_path / "undisturbed"
    write_dataset(dataset, image_size=40)
    settings = {
        "steps": 1000, "batch_size": 16, "warmup_steps": 3, "log_every": 5,
        "checkpoint_every": 50, "hidden_dim": 32, "workers": 0, "deterministic": True,
        "device": "cpu", "timeout_s": 20,
    }  # fmt: skip
    code, output = run_infineg("train", write_run_config(dataset, undisturbed, **settings), log=log)
    assert code == 0, output
    config = write_run_config(dataset, run, **settings)
    arguments = ("train", config, "--launcher", "ray", "--num-workers", "1:2")
    with (
        ray_nodes(net.hosts[:2]) as cluster,
        running_infineg(
            *arguments, log=log, prefix=cluster.hosts[0].prefix, RAY_ADDRESS=cluster.address,
            RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="15", **cluster.env,
        ) as command,
    ):  # fmt: skip
        wait_until(lambda: bool(checkpoint_steps(run)), command, log)
        assert all(map(cluster.trains, range(2)))
        cluster.kill(1)
        assert command.wait(timeout=200) == 0, log.read_text()
    assert re.search(r"train: [\d,]+ of 16,000 samples", log.read_text())
    logged, expected = losses_logged(run), losses_logged(undisturbed)
    assert len(logged) == len(expected) == 200
    assert max(logged[-1], expected[-1]) < 1e-3 < 0.1 < expected[0]
