"""The committed loss curve: a change that should not alter training leaves it as it is."""

import json
from pathlib import Path

import pytest

from support.train_runs import write_config, write_dataset
from train.config import load_train_config
from train.loop.trainer import train

# Head on the toy data set, seed 0. A change that should alter it brings its own curve.
CURVE = [0.74261, 0.73044, 0.58231, 0.45253, 0.35068, 0.25993, 0.2829, 0.21511, 0.22063, 0.26259]


def test_toy_loss_curve_is_the_committed_one(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", noise=1.0)
    path = write_config(
        tmp_path / "config.yaml", dataset=tmp_path / "data", run=tmp_path / "run",
        train={"steps": 10, "batch_size": 32, "warmup_steps": 2, "log_every": 1},
    )  # fmt: skip
    config, train_config, _ = load_train_config(path)
    lines = (train(config, train_config) / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == pytest.approx(CURVE, abs=1e-4)
