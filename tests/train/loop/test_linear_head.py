"""The head of `mode: head`: a logistic regression, which the steps of the trainer solve."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.dataset import Dataset
from support.train_runs import run_training, write_dataset
from train.config import TrainConfig
from train.data.batches import read_eval_batches
from train.model.detector import load_model

SETTINGS: dict[str, Any] = {
    "folds": 1, "correction": "none", "positive_share": 0.5, "workers": 0, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("overlapping")
    write_dataset(root, image_size=40, noise=1.0)
    return root


def features_of(root: Path, head: Any) -> tuple[Any, Any]:
    """features_ND of norm 1 of the train split, and whether each row is a cat."""
    generation = Dataset(str(root)).read_generation()
    features, labels = [], []
    for rows, embedding_BD in read_eval_batches(
        str(root), generation, splits=("train",), mode="head", preprocessing=None
    ):
        features.append(head.norm(head.standardize(embedding_BD)).detach().double().numpy())
        labels += rows["label"].to_pylist()
    features_ND = np.concatenate(features)
    return features_ND / features_ND.shape[1] ** 0.5, np.array(labels) == "cat"


@pytest.mark.parametrize("weight_decay", [0.03, 1.0])
def test_training_solves_the_penalised_logistic_regression(
    overlapping: Path, tmp_path: Path, weight_decay: float
) -> None:
    run = run_training(
        overlapping, tmp_path / "run", **SETTINGS | {"weight_decay": weight_decay}
    )  # fmt: skip
    head = load_model(run)[0].head
    features_ND, is_cat_N = features_of(overlapping, head)
    exact = LogisticRegression(C=1 / weight_decay, class_weight="balanced", max_iter=1000)
    exact.fit(features_ND, is_cat_N)
    (linear,) = [each for each in head.folds[0] if hasattr(each, "weight")]
    weight_D = linear.weight[0].detach().double().numpy() * features_ND.shape[1] ** 0.5
    assert weight_D == pytest.approx(exact.coef_[0], abs=0.03 * np.linalg.norm(exact.coef_[0]))
    ours_N = features_ND @ weight_D + linear.bias.item()
    theirs_N = exact.decision_function(features_ND)
    assert np.abs(ours_N - theirs_N).max() < 0.05 * np.abs(theirs_N).max()


def test_each_of_several_heads_has_the_penalty_of_one(overlapping: Path, tmp_path: Path) -> None:
    """Otherwise five heads would be five times as free as one."""
    norms = []
    for folds in (1, 5):
        run = run_training(overlapping, tmp_path / f"run{folds}", **SETTINGS | {"folds": folds})
        heads = load_model(run)[0].head.folds
        norms.append(np.mean([head[-1].weight.norm().item() for head in heads]))
    assert norms[1] == pytest.approx(norms[0], rel=0.15)


def test_defaults_are_those_of_the_kind_of_head() -> None:
    def of(**settings: Any) -> tuple[int, float, float]:
        config = TrainConfig(run="r", **settings)
        return config.hidden_dim, config.learning_rate, config.weight_decay

    assert of() == (0, 0.1, 0.03)
    assert of(hidden_dim=32) == (32, 1e-3, 1e-4)
    assert of(mode="finetune") == (256, 3e-4, 1e-4)
    assert of(mode="finetune", hidden_dim=0, learning_rate=0.01) == (0, 0.01, 1e-4)
