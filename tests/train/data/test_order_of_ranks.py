"""Two processes that see different states of a data set train on the same rows."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset import Dataset
from support.train_runs import (
    SHORT,
    add_generation,
    read_losses,
    run_ranks,
    run_training,
    write_dataset,
    write_run_config,
)
from train.config import load_train_config
from train.loop.trainer import train
from train.model.info import read_model_info

SECTION: dict[str, Any] = SHORT | {
    "mode": "finetune", "head_steps": 0, "steps": 4, "dropout": 0.0, "on_bad_shard": "skip",
}  # fmt: skip


def train_own(configs: list[Path]) -> None:
    """The config of this rank."""
    config, train_config, _ = load_train_config(str(configs[int(os.environ["RANK"])]))
    train(config, train_config, generation="latest")


@pytest.mark.timeout(150)  # two more processes import torch: slow where cores are few
def test_ranks_agree_on_generation_and_damaged_shards(tmp_path: Path) -> None:
    """The second has no copy of one tar yet, but sees a generation more than the first."""
    first, second = tmp_path / "first", tmp_path / "second"
    write_dataset(first, num_positives=20, num_negatives=60, image_size=32, samples_per_shard=10)
    shutil.copytree(first, second)
    lost = [
        s
        for s in Dataset(str(first)).read_generation().shards
        if s.split == "train" and not s.label
    ][1]
    (second / lost.path).unlink()
    add_generation(second)
    # Both write to one run, which the first does.
    of_first = write_run_config(first, tmp_path / "run", **SECTION)
    of_second = of_first.with_name("second.yaml")
    of_second.write_text(of_first.read_text().replace(str(first), str(second)))
    run_ranks(train_own, [of_first, of_second])
    info = read_model_info(tmp_path / "run")
    found = [(segment.generation, segment.skipped) for segment in info.segments]
    assert found == [(1, (lost.path,))]
    (first / lost.path).unlink()
    alone = run_training(first, tmp_path / "alone", **SECTION)
    assert read_losses(alone) == pytest.approx(read_losses(tmp_path / "run"), abs=1e-5)
