"""Runs that are stopped, killed, fed with nonsense or out of disk, as real processes."""

import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.schema import with_columns
from support.damage import replace_sidecar
from support.processes import Command, wait_until
from support.train_runs import (
    assert_same_run,
    checkpoint_steps,
    finish,
    kill_job,
    losses_logged,
    on_two,
    start_job,
    start_ranks,
    steps_logged,
    workers_of,
    write_dataset,
    write_run_config,
)

HEAD = {
    "steps": 500, "batch_size": 16, "warmup_steps": 3, "log_every": 5,
    "checkpoint_every": 50, "hidden_dim": 32, "workers": 0, "deterministic": True,
}  # fmt: skip
pytestmark = pytest.mark.timeout(180)  # processes that import torch, several a test


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Finished runs of HEAD, by the number of processes."""
    root = tmp_path_factory.mktemp("undisturbed")
    runs = {1: root / "one", 2: root / "two"}
    for size, run in runs.items():
        config = write_run_config(dataset, run, **HEAD)
        finish(*start(size, config, log=root / "log"))
    return runs


def start(size: int, config: Path, *arguments: str, log: Path) -> list[Command]:
    """In one process, or in two."""
    if size == 2:
        return start_ranks(config, *arguments, log=log)
    return [start_job(config, *arguments, log=log)]


def wait_for_steps(job: Command, run: Path, num: int, log: Path) -> None:
    wait_until(lambda: steps_logged(run) * HEAD["log_every"] >= num, job, log)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_first_and_the_resumed_run_is_the_undisturbed_one(
    dataset: Path, undisturbed: dict[int, Path], tmp_path: Path, number: signal.Signals
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    config = write_run_config(dataset, run, **HEAD | {"checkpoint_every": 10_000})
    job = start_job(config, log=log)
    wait_for_steps(job, run, 100, log)
    job.send_signal(number)
    finish(job, code=128 + number)
    (step,) = checkpoint_steps(run)
    assert f"{number.name} after step {step:,} of {run}: saved at step {step:,}" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert 100 <= step < HEAD["steps"]
    finish(start_job(config, "--resume", log=log))
    assert_same_run(run, undisturbed[1])


def test_a_signal_to_one_of_two_processes_stops_both_at_one_step(
    dataset: Path, undisturbed: dict[int, Path], tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    config = write_run_config(dataset, run, **HEAD | {"checkpoint_every": 10_000})
    jobs = start_ranks(config, log=log)
    wait_for_steps(jobs[0], run, 100, log)
    jobs[1].send_signal(signal.SIGTERM)
    finish(*jobs, code=128 + signal.SIGTERM)
    assert len(checkpoint_steps(run)) == 1
    assert log.read_text().count("--resume continues there") == 2, "both say so, neither is killed"
    finish(*start_ranks(config, "--resume", log=log))
    assert_same_run(run, undisturbed[2])


# Of two hosts, test_launchers.py does the same in `make test-cluster`.
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_killed_process_is_replaced_and_the_run_ends_as_if_undisturbed(
    dataset: Path, undisturbed: dict[int, Path], tmp_path: Path, seed: int
) -> None:
    """SIGKILL of one of two, at a random step, before the first checkpoint or after."""
    rng = random.Random(seed)
    run, log = tmp_path / "run", tmp_path / "log"
    job = start_job(
        write_run_config(dataset, run, **HEAD), log=log, launcher=on_two("--max-restarts", "1")
    )
    wait_for_steps(job, run, rng.choice([5, rng.randrange(50, 400)]), log)
    os.kill(rng.choice(workers_of(job)), signal.SIGKILL)
    finish(job)
    assert "failed (exitcode: " in log.read_text(), "torchrun has seen it"
    assert_same_run(run, undisturbed[2])


@pytest.mark.cluster
def test_a_process_that_hangs_is_given_up(dataset: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    config = write_run_config(dataset, run, **HEAD | {"steps": 100_000, "timeout_s": 3})
    jobs = start_ranks(config, log=log)
    wait_for_steps(jobs[0], run, 50, log)
    jobs[1].send_signal(signal.SIGSTOP)
    finish(jobs[0], code=1)
    kill_job(jobs[1])
    assert "one of the processes is gone, or has not answered for 3 s" in log.read_text()


@pytest.mark.parametrize("size", [1, 2])
def test_a_broken_loss_names_the_sample_and_keeps_the_last_checkpoint(
    tmp_path: Path, size: int
) -> None:
    root, run, log = tmp_path / "data", tmp_path / "run", tmp_path / "log"
    generation = write_dataset(root, image_size=40, num_negatives=1500)
    shard = next(s for s in generation.shards if s.split == "train" and s.source == "noise")
    table = pq.read_table(root / shard.sidecar_path)
    embeddings = table["embedding"].to_pylist()
    embeddings[7][3] = np.nan
    column = pa.array(embeddings, table.schema.field("embedding").type)
    replace_sidecar(root, shard, with_columns(table, embedding=column))
    # An epoch of negatives is 125 steps: it comes once in them.
    config = write_run_config(
        root, run, **HEAD | {"steps": 130, "checkpoint_every": 3, "log_every": 10}
    )
    finish(*start(size, config, log=log), code=1)
    listed = json.loads((run / "nan_batch.json").read_text())
    broken = [sample for sample in listed["samples"] if not sample["is_finite"]]
    assert [sample["key"] for sample in broken] == [table["key"][7].as_py()]
    assert len(listed["samples"]) == 16
    assert {sample["rank"] for sample in listed["samples"]} == set(range(size))
    assert f"the loss of step {listed['step']:,} is not finite" in log.read_text()
    assert "takedown` removes them" in log.read_text()
    saved = checkpoint_steps(run)
    assert saved[-1] == listed["step"] // 3 * 3, "the last before it, and none after"
    assert all(np.isfinite(losses_logged(run)))


def test_a_full_disk_keeps_the_last_good_checkpoint(
    dataset: Path, undisturbed: dict[int, Path], tmp_path: Path
) -> None:
    """The kernel refuses files larger than 80 kB, which a checkpoint is and a log is not."""
    run, log = tmp_path / "run", tmp_path / "log"
    config = write_run_config(dataset, run, **HEAD)
    job = start_job(config, log=log)
    wait_for_steps(job, run, 75, log)
    job.send_signal(signal.SIGTERM)
    finish(job, code=143)
    good = checkpoint_steps(run)[-1]
    finish(start_job(config, "--resume", log=log, limits="ulimit -f 80"), code=1)
    text = log.read_text()
    assert "checkpoint of step 450 could not be written ([Errno 27] File too large" in text
    assert f"the last is of step {good:,}, and training goes on" in text
    assert "Traceback" not in text
    assert checkpoint_steps(run)[-1] == good
    assert not list((run / "checkpoints").glob(".tmp-*"))
    assert not (run / "model.json").exists()
    finish(start_job(config, "--resume", log=log))
    assert_same_run(run, undisturbed[1])
