"""The committed loss curve: a change that should not alter training leaves it as it is."""

from pathlib import Path

import pytest

from support.train_runs import read_losses, run_training, write_dataset

# Head on the toy data set, seed 0. A change that should alter it brings its own curve.
CURVE = [0.74261, 0.73044, 0.58231, 0.45253, 0.35068, 0.25993, 0.2829, 0.21511, 0.22063, 0.26259]


def test_toy_loss_curve_is_the_committed_one(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", noise=1.0)
    section = {"steps": 10, "batch_size": 32, "warmup_steps": 2, "log_every": 1}
    run = run_training(tmp_path / "data", tmp_path / "run", **section)
    assert read_losses(run) == pytest.approx(CURVE, abs=1e-4)
