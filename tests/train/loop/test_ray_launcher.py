"""`infineg train --launcher ray`: real Ray, real workers, one of them killed."""

import json
import os
import signal
from pathlib import Path

import pytest
import ray

from pipeline.errors import ConfigError
from support.processes import (
    call_infineg,
    run_infineg,
    running_infineg,
    session_processes,
    wait_until,
)
from support.train_runs import (
    assert_same_run,
    checkpoint_steps,
    finish,
    start_ranks,
    write_run_config,
)
from train.loop.ray_launcher import Workers, parse_workers

HEAD = {
    "steps": 1200, "batch_size": 16, "warmup_steps": 3, "log_every": 5, "checkpoint_every": 50,
    "hidden_dim": 32, "workers": 0, "deterministic": True, "device": "cpu",
}  # fmt: skip


@pytest.mark.slow  # of the cluster's tests, that of a killed node asks more
@pytest.mark.timeout(240)  # a Ray of its own, and processes that import torch
def test_a_killed_worker_is_replaced_and_the_run_ends_as_under_torchrun(
    dataset: Path, tmp_path: Path
) -> None:
    undisturbed, run, log = tmp_path / "undisturbed", tmp_path / "run", tmp_path / "log"
    finish(*start_ranks(write_run_config(dataset, undisturbed, **HEAD), log=log))
    config = write_run_config(dataset, run, **HEAD)
    options = ("--launcher", "ray", "--num-workers", "2")
    with running_infineg("train", config, *options, log=log) as command:
        wait_until(lambda: bool(checkpoint_steps(run)), command, log)
        workers = [
            pid for pid, line in session_processes(command.pid).items() if "RayTrainWorker" in line
        ]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        assert command.wait(timeout=150) == 0, log.read_text()
    assert_same_run(run, undisturbed)
    assert "trained: " in log.read_text()


@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_what_no_restart_mends_is_told_once(dataset: Path, tmp_path: Path) -> None:
    """An error in the workers, of a rate that spoils the weights."""
    run = tmp_path / "run"
    config = write_run_config(dataset, run, **HEAD | {"learning_rate": 1e38, "steps": 50})
    code, text = run_infineg(
        "train", config, "--launcher", "ray", "--num-workers", "1", log=tmp_path / "log"
    )
    assert code == 1
    assert text.count("is not finite, and training stopped") == 1
    assert "Traceback" not in text
    assert json.loads((run / "nan_batch.json").read_text())["samples"]


def test_numbers_of_workers_are_read_and_refused() -> None:
    assert parse_workers("4") == Workers(4, 4)
    assert parse_workers("2:4") == Workers(2, 4)
    for wrong in ("0", "4:2", "many", "1:2:3", ""):
        with pytest.raises(ConfigError, match=r"--num-workers: .*; give a number from 1, or MIN"):
            parse_workers(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--launcher", "ray", "--num-workers", "2:3"], "multiple of every possible number"),
        (["--num-workers", "2"], "need --launcher ray"),
        (["--launcher", "ray", "--generation", "7"], "generation 7"),
    ],
)
def test_bad_use_is_refused_before_ray_starts(
    dataset: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_run_config(dataset, tmp_path / "run", **HEAD)
    code, _, text = call_infineg(capsys, "train", config, *options)
    assert code in (1, 2)
    assert message in text
    assert "Traceback" not in text
    assert not ray.is_initialized()
