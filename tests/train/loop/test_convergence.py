"""Cost that follows the data: batches no larger than it, and an end once nothing changes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dataset import Dataset
from support.train_runs import (
    SHORT,
    add_generation,
    assert_same_run,
    interrupt_training,
    read_log,
    run_ranks,
    run_training,
    train_all,
    write_dataset,
    write_run_config,
)
from train.config import EarlyStopping, TrainConfig
from train.data.batches import read_eval_batches
from train.data.rows import folds_of
from train.loop.convergence import EVERY
from train.loop.validation import measure_target
from train.model.detector import load_model
from train.model.info import read_model_info

# Learned for good before its last step. Without dropout, whose noise depends on the process.
LONG: dict[str, Any] = SHORT | {
    "steps": 400, "checkpoint_every": 60, "learning_rate": 0.001, "dropout": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("overlapping")
    write_dataset(root, image_size=40, noise=1.0)
    return root


@pytest.fixture(scope="module")
def ended(overlapping: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_training(overlapping, tmp_path_factory.mktemp("ended") / "run", **LONG)


def held_out_losses(run: Path) -> dict[int, float]:
    """Steps done -> loss."""
    return {
        line["step"] + 1: line["held_out_loss"] for line in read_log(run) if "held_out_loss" in line
    }


def test_training_ends_once_the_loss_of_held_out_rows_does_not_change(ended: Path) -> None:
    losses = held_out_losses(ended)
    steps, values = list(losses), list(losses.values())
    assert steps == list(range(EVERY, steps[-1] + 1, EVERY))
    assert EVERY < steps[-1] < 400
    changes = [abs(b - a) / max(a, 0.1) for a, b in pairwise(values)]
    assert len(changes) > 2
    assert changes[-1] < 0.01 < min(changes[:-1])
    assert len(read_log(ended)) == steps[-1]
    assert read_model_info(ended).samples_seen == steps[-1] * 16


def test_a_tolerance_of_0_takes_all_steps(overlapping: Path, tmp_path: Path) -> None:
    run = run_training(overlapping, tmp_path / "run", **LONG | {"steps": 160, "tolerance": 0})
    assert read_model_info(run).samples_seen == 160 * 16


def test_the_loss_is_that_of_rows_by_the_heads_that_have_not_seen_them(
    overlapping: Path, ended: Path
) -> None:
    detector, _ = load_model(ended)
    logits, labels, weights = [], [], []
    generation = Dataset(str(overlapping)).read_generation()
    with torch.inference_mode():
        for rows, embedding_BD in read_eval_batches(
            str(overlapping), generation, splits=("train", "val"), mode="head", preprocessing=None
        ):
            by_fold_BFK = detector.head(embedding_BD, by_fold=True)
            fold_B = torch.from_numpy(folds_of(rows["group"], 5)).long()
            logits.append(by_fold_BFK[torch.arange(len(fold_B)), fold_B, 0])
            labels += rows["label"].to_pylist()
            weights += [1 / p for p in rows["inclusion_probability"].to_pylist()]
    wanted = measure_target(
        torch.tensor([label == "cat" for label in labels]).numpy(),
        torch.cat(logits).numpy(),
        torch.tensor(weights).double().numpy(),
        EarlyStopping(metric="val_loss"),
        positive_share=0.25,
    )
    assert list(held_out_losses(ended).values())[-1] == pytest.approx(wanted, rel=1e-5)


def test_an_interrupted_run_ends_at_the_same_step_with_the_same_bits(
    overlapping: Path, ended: Path, tmp_path: Path
) -> None:
    last = list(held_out_losses(ended))[-1]
    # After a check and a checkpoint that remembers it, before the check that ends the run.
    at = last - EVERY + 25
    interrupt_training(overlapping, tmp_path / "run", at=at, **LONG | {"checkpoint_every": 20})
    resumed = run_training(
        overlapping, tmp_path / "run", resume=True, **LONG | {"checkpoint_every": 20}
    )
    assert_same_run(resumed, ended)


def test_two_processes_end_at_the_same_step(overlapping: Path, ended: Path, tmp_path: Path) -> None:
    run_ranks(train_all, [write_run_config(overlapping, tmp_path / "run", **LONG)])
    losses, of_one = held_out_losses(tmp_path / "run"), held_out_losses(ended)
    assert losses == pytest.approx(of_one, rel=1e-3)


def test_a_batch_is_halved_while_half_of_it_holds_all_rows() -> None:
    sizes = {
        rows: TrainConfig(run="r").for_rows(rows).batch_size
        for rows in (1, 32, 33, 57, 64, 65, 200, 10_000)
    }
    assert sizes == {1: 32, 32: 32, 33: 64, 57: 64, 64: 64, 65: 128, 200: 256, 10_000: 256}
    rare = TrainConfig(run="r", positive_share=0.005)
    assert rare.num_positives == 1
    assert rare.for_rows(10).batch_size == 128, "of 64 none would be a positive"


def test_a_grown_data_set_keeps_the_batch_that_a_run_began_with(tmp_path: Path) -> None:
    """Positions of samples in the run, and so its order, depend on it."""
    root, run = tmp_path / "data", tmp_path / "run"
    write_dataset(root, image_size=40, num_positives=20, num_negatives=60)
    section = SHORT | {"batch_size": 256}
    interrupt_training(root, run, at=9, **section)
    add_generation(root)
    run_training(root, run, resume=True, switch_to="latest", **section)
    info = read_model_info(run)
    assert (info.generation, info.samples_seen) == (2, 12 * 128)
    fresh = run_training(root, tmp_path / "fresh", **section)
    assert read_model_info(fresh).samples_seen == 12 * 256


def test_a_small_head_is_no_worse_for_the_steps_it_is_spared(tmp_path: Path) -> None:
    """18 positives and 40 negatives: it ranks as 400 steps of twice the batch do, which 5 steps
    do not."""
    write_dataset(
        tmp_path / "data", image_size=40, noise=1.5, num_positives=12, num_negatives=27,
    )  # fmt: skip
    detectors = []
    for section in ({}, {"tolerance": 0, "batch_size": 125}, {"steps": 5}):
        run = run_training(tmp_path / "data", tmp_path / f"run{len(detectors)}", **section)
        detectors.append(load_model(run))
    assert detectors[0][1].samples_seen < 0.5 * detectors[1][1].samples_seen
    generation = Dataset(str(tmp_path / "data")).read_generation()
    ranks = []
    for detector, _ in detectors:
        with torch.inference_mode():
            batches = read_eval_batches(
                str(tmp_path / "data"),
                generation,
                splits=("test",),
                mode="head",
                preprocessing=None,
            )
            logits = torch.cat([detector.head_logits(inputs)[:, 0] for _, inputs in batches])
        ranks.append(logits.argsort().argsort().float())
    quick, _, hardly_begun = torch.corrcoef(torch.stack(ranks))[1]
    assert hardly_begun < 0.95 < 0.98 < quick
