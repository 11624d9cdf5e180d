"""Who starts the processes of a training: two agents of torchrun, nobody; without Ray."""

import os
import signal
from pathlib import Path

import pytest

from support.processes import call_infineg, free_port, network, wait_until
from support.train_runs import (
    TORCHRUN,
    assert_same_run,
    checkpoint_steps,
    finish,
    kill_job,
    start_job,
    start_ranks,
    workers_of,
    write_run_config,
)

HEAD = {
    "steps": 400, "batch_size": 16, "warmup_steps": 3, "log_every": 5, "checkpoint_every": 50,
    "hidden_dim": 32, "workers": 0, "deterministic": True,
}  # fmt: skip
# A store of its own for each attempt: the switch that several agents of torchrun need.
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
pytestmark = pytest.mark.timeout(180)  # processes that import torch, several a test


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two processes."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    log = run.with_suffix(".log")
    finish(*start_ranks(write_run_config(dataset, run, **HEAD), log=log))
    return run


@pytest.mark.parametrize(
    ("message", "environment"),
    [
        ("WORLD_SIZE is 2, but RANK and MASTER_ADDR and MASTER_PORT not set", {"WORLD_SIZE": "2"}),
        ("WORLD_SIZE='two' in the environment is not a number", {"WORLD_SIZE": "two"}),
        (
            "srun started 2 tasks, which do not know of each other: start torchrun",
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
        ),
        (
            "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun on every node",
            {
                **dict.fromkeys(("WORLD_SIZE", "GROUP_WORLD_SIZE"), "2"),
                "RANK": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free_port()),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "1",
            },
        ),
    ],
    ids=["half", "word", "srun", "store"],
)
def test_environments_that_describe_no_group_are_refused(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    message: str,
    environment: dict[str, str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = write_run_config(dataset, tmp_path / "run", **HEAD)
    code, _, text = call_infineg(capsys, "train", config)
    assert code == 2
    assert message in " ".join(text.split())
    assert not (tmp_path / "run").exists()
    assert "Traceback" not in text


def test_training_needs_no_ray(dataset: Path, tmp_path: Path) -> None:
    """An environment in which every import of it fails, as where it isn't installed."""
    (tmp_path / "site" / "ray").mkdir(parents=True)
    (tmp_path / "site" / "ray" / "__init__.py").write_text(
        "raise ModuleNotFoundError('No module named ray', name='ray')\n"
    )
    run, log = tmp_path / "run", tmp_path / "log"
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    config = write_run_config(dataset, run, **HEAD | {"steps": 20})
    finish(start_job(config, log=log, PYTHONPATH=path))
    assert (run / "model.json").exists()


def agent(node: int, endpoint: str, *options: str) -> list[str]:
    """One of two nodes, a process each."""
    same = [
        "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "job", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", endpoint, "--rdzv-conf", f"is_host={int(node == 0)}",
        "--max-restarts", "2",
    ]  # fmt: skip
    return [TORCHRUN, *same, *options]


@pytest.mark.cluster
def test_two_hosts_go_on_after_a_kill_on_one_of_them(
    dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Joined by a cable, where the machine allows network namespaces.

    Only the agent of the killed process counts a restart; both must meet again.
    """
    run = tmp_path / "run"
    config = write_run_config(dataset, run, **HEAD)
    logs = [tmp_path / f"log{node}" for node in range(2)]
    with network(2) as net:
        endpoint = f"{net.hosts[0].address}:{free_port()}"
        jobs = [
            start_job(
                config,
                log=log,
                launcher=[*host.prefix, *agent(node, endpoint, "--local-addr", host.address)],
                GLOO_SOCKET_IFNAME=host.interface,
                **OWN_STORE,
            )
            for node, (host, log) in enumerate(zip(net.hosts, logs, strict=True))
        ]
        try:
            wait_until(lambda: bool(checkpoint_steps(run)), jobs[1], logs[1])
            os.kill(workers_of(jobs[1])[0], signal.SIGKILL)
            finish(*jobs)
        finally:
            for job in jobs:
                kill_job(job)
    assert_same_run(run, undisturbed)
