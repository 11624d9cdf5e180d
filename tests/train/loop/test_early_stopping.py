"""Early stopping: what is measured, what is kept, and that all processes stop alike."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from support.train_runs import (
    EVAL_PROBABILITY,
    FINETUNE,
    SHORT,
    read_log,
    run_training,
    write_dataset,
)
from train.config import EarlyStopping
from train.data.batches import read_eval_batches
from train.data.rows import folds_of
from train.evaluate.run import evaluate_run
from train.loop.validation import BestSoFar, measure_target, tpr_at_fpr
from train.model.detector import load_model
from train.model.info import read_model_info
from train.model.tensors import read_tensors

# A rate at which a head that has learned is thrown off again.
WILD = SHORT | {
    "steps": 40, "learning_rate": 0.5, "hidden_dim": 0,
    "early_stopping": {"metric": "val_auroc", "every": 2, "patience": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, image_size=40, noise=2.0)
    return root


def read_checks(run: Path, metric: str) -> dict[int, float]:
    """Steps done -> value."""
    return {line["step"] + 1: line[metric] for line in read_log(run) if metric in line}


@pytest.fixture(scope="module")
def wild(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has stopped early."""
    return run_training(dataset, tmp_path_factory.mktemp("wild") / "run", **WILD)


def test_run_ends_once_patience_does_and_exports_its_best_step(wild: Path) -> None:
    checks = read_checks(wild, "val_auroc")
    best = max(checks, key=checks.__getitem__)
    assert max(checks) == best + 6, "three checks without a better one"
    assert max(checks) < 40
    about = json.loads((wild / "checkpoints" / "best.json").read_text())
    sha256 = hashlib.sha256((wild / "checkpoints" / "best.safetensors").read_bytes()).hexdigest()
    assert about == {"step": best, "val_auroc": checks[best], "sha256": sha256}
    detector, info = load_model(wild)
    assert info.samples_seen == best * 16
    kept = read_tensors(wild / "checkpoints" / "best.safetensors")
    for name, tensor in detector.head.state_dict().items():
        assert torch.equal(tensor, kept[name])
    assert evaluate_run(wild)["samples_seen"] == best * 16


def test_what_is_logged_is_the_metric_of_the_val_split_of_those_weights(
    dataset: Path, wild: Path
) -> None:
    detector, _ = load_model(wild)
    logits, is_positive, weights = [], [], []
    generation = Dataset(str(dataset)).read_generation()
    with torch.inference_mode():
        for rows, embedding_BD in read_eval_batches(
            str(dataset), generation, splits=("val",), mode="head", preprocessing=None
        ):
            fold_B = folds_of(rows["group"], 5)
            logits += detector.head.held_out_logits(embedding_BD, fold_B)[:, 0].tolist()
            is_positive += [label == "cat" for label in rows["label"].to_pylist()]
            weights += [1 / p for p in rows["inclusion_probability"].to_pylist()]
    assert set(weights) == {1.0, 1 / EVAL_PROBABILITY}
    wanted = roc_auc_score(is_positive, logits, sample_weight=weights)
    assert max(read_checks(wild, "val_auroc").values()) == pytest.approx(wanted, abs=1e-6)


def test_a_run_without_early_stopping_ends_with_its_last_weights(
    dataset: Path, tmp_path: Path
) -> None:
    run = run_training(dataset, tmp_path / "run", **WILD | {"early_stopping": None})
    info = read_model_info(run)
    assert info.samples_seen == 40 * 16
    assert not (run / "checkpoints" / "best.json").exists()


@pytest.mark.parametrize("metric", ["val_loss", "val_average_precision", "val_tpr_at_fpr"])
def test_finetuning_validates_on_embeddings_first_and_then_on_images(
    dataset: Path, tmp_path: Path, metric: str
) -> None:
    section = FINETUNE | {"early_stopping": {"metric": metric, "every": 4, "patience": 9}}
    run = run_training(dataset, tmp_path / "run", **section)
    checks = read_checks(run, metric)
    assert list(checks) == [4, 8, 12]
    about = json.loads((run / "checkpoints" / "best.json").read_text())
    better = min if metric == "val_loss" else max
    assert checks[about["step"]] == about[metric] == better(checks.values())


def test_best_so_far_counts_checks_that_are_not_better() -> None:
    best = BestSoFar()
    for step, value in ((10, 0.5), (20, 0.7), (30, 0.7), (40, 0.6)):
        best = best.after(step, value, "val_auroc")
    assert best == BestSoFar(20, 0.7, 2)
    assert BestSoFar(20, 0.7, 2).after(50, 0.6, "val_loss") == BestSoFar(50, 0.6, 0)
    assert BestSoFar.from_state(best.state()) == best
    assert set(best.state()) == {
        "early_stopping.step", "early_stopping.value", "early_stopping.num_worse",
    }, "checkpoints keep their names"  # fmt: skip
    assert BestSoFar.from_state({}).after(1, 0.0, "val_auroc") == BestSoFar(1, 0.0, 0)


def test_metrics_weigh_negatives_by_their_inverse_probability() -> None:
    is_positive = np.array([True, True, False, False])
    logits, weights = np.array([2.0, 0.0, 1.0, -1.0]), np.array([1.0, 1.0, 1.0, 9.0])
    # One positive of two lies under the negative of weight 1 of 10.
    loss = measure_target(
        is_positive, logits, weights, EarlyStopping(metric="val_loss"), positive_share=0.25
    )
    losses = np.logaddexp(0, [-2.0, 0.0, 1.0, -1.0])
    assert loss == pytest.approx(0.25 * losses[:2].mean() + 0.75 * (losses[2] + 9 * losses[3]) / 10)
    auroc = measure_target(is_positive, logits, weights, EarlyStopping(), positive_share=0.25)
    assert auroc == pytest.approx(0.95)
    assert tpr_at_fpr(is_positive, logits, weights, fpr=0.05) == 0.5
    assert tpr_at_fpr(is_positive, logits, weights, fpr=0.2) == 1.0


def test_val_without_the_target_is_refused_before_the_first_step(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_positives=1)  # half of one is none
    section = SHORT | {"early_stopping": {}, "folds": 1}
    with pytest.raises(ConfigError, match=r"early_stopping: val of generation 1 has 0 samples of"):
        run_training(tmp_path / "data", tmp_path / "run", **section)
    assert not (tmp_path / "run" / "log.jsonl").exists()
