"""The committed loss curve: a change that should not alter training leaves it as it is."""

from pathlib import Path

import pytest

from support.train_runs import read_losses, run_training, write_dataset

# Five heads on the toy data set, seed 0. A change that should alter it brings its own curve.
CURVE = [0.68893, 0.25607, 0.17318, 1.45061, 0.43789, 0.57935, 0.34054, 0.11465, 0.51253, 0.05428]


def test_toy_loss_curve_is_the_committed_one(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", noise=1.0)
    section = {"steps": 10, "batch_size": 32, "warmup_steps": 2, "log_every": 1}
    run = run_training(tmp_path / "data", tmp_path / "run", **section)
    assert read_losses(run) == pytest.approx(CURVE, abs=1e-4)
