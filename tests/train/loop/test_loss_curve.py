"""The committed loss curve: a change that should not alter training leaves it as it is."""

from pathlib import Path

import pytest

from support.train_runs import read_losses, run_training, write_dataset

# Five heads on the toy data set, seed 0. A change that should alter it brings its own curve.
CURVE = [0.68893, 0.25575, 0.16766, 1.43099, 0.41587, 0.54418, 0.3104, 0.10077, 0.45571, 0.05368]


def test_toy_loss_curve_is_the_committed_one(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", noise=1.0)
    section = {"steps": 10, "batch_size": 32, "warmup_steps": 2, "log_every": 1}
    run = run_training(tmp_path / "data", tmp_path / "run", **section)
    assert read_losses(run) == pytest.approx(CURVE, abs=1e-4)
