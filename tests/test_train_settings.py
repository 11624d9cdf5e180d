"""The sections of the config, the weights, the loss and the learning rate."""

import json
from pathlib import Path

import pytest
import torch
from train_dataset import write_config

from pipeline.errors import ConfigError
from train.config import load_train_config
from train.losses import importance_weights, weighted_bce
from train.optim import Schedule


def test_weights_are_self_normalised_and_clipped() -> None:
    targets_BK = torch.tensor([[1.0], [0.0], [0.0], [0.0], [0.0]])
    inverse_B = torch.tensor([1.0, 1.0, 1.0, 1.0, 5.0])
    plain = importance_weights(targets_BK, inverse_B, max_weight=10, reduce_sum=lambda x: x)
    assert plain.weight_BK[:, 0].tolist() == pytest.approx([1, 0.5, 0.5, 0.5, 2.5])
    assert plain.clipped_mass.item() == 0
    clipped = importance_weights(targets_BK, inverse_B, max_weight=1.5, reduce_sum=lambda x: x)
    # 2.5 becomes 1.5: a quarter of the mass 4 is lost, then the mean is brought back to 1.
    assert clipped.clipped_mass.item() == pytest.approx(0.25)
    assert clipped.weight_BK[:, 0].tolist() == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3, 2])


def test_a_positive_of_one_target_is_a_negative_of_the_other() -> None:
    targets_BK = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    weights = importance_weights(
        targets_BK, torch.tensor([1.0, 1.0, 3.0]), max_weight=10, reduce_sum=lambda x: x
    )
    assert torch.allclose(weights.weight_BK, torch.tensor([[1, 0.5], [0.5, 1], [1.5, 1.5]]))


def test_loss_is_that_of_a_hand_computation() -> None:
    logits_BK = torch.tensor([[2.0], [-1.0]])
    targets_BK, weight_BK = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [3.0]])
    loss = weighted_bce(
        logits_BK, targets_BK, weight_BK, global_batch_size=4, world_size=2
    )  # fmt: skip
    # softplus(-2) + 3 * softplus(-1), over 4 samples, times 2 processes.
    assert loss.item() == pytest.approx((0.126928 + 3 * 0.313262) / 4 * 2, abs=1e-5)


def test_learning_rate_rises_falls_and_begins_where_its_phase_does() -> None:
    schedule = Schedule(peak=1.0, first=10, warmup=4, last=34)
    assert schedule.learning_rate(9) == 0
    assert schedule.learning_rate(10) == pytest.approx(0.2)
    assert schedule.learning_rate(14) == pytest.approx(1)
    assert schedule.learning_rate(24) == pytest.approx(0.5)
    assert schedule.learning_rate(33) < 0.01


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"train": {"mode": "heads"}}, r"train\.mode: .*'head' or 'finetune'.*'heads'"),
        ({"train": {"stepz": 3}}, r"train\.stepz: Extra inputs are not permitted"),
        ({"train": {"batch_size": 3, "positive_share": 0.1}}, r"train\.positive_share 0\.1 of"),
        ({"train": {"mode": "finetune", "steps": 9}}, r"train\.head_steps 300 must be under"),
        ({"evaluate": {"alpha": 2}}, r"evaluate\.alpha: .* less than 1, got 2"),
    ],
)
def test_config_errors_name_the_field(tmp_path: Path, section: dict, message: str) -> None:
    path = write_config(tmp_path / "c.yaml", dataset=tmp_path, run=tmp_path / "run", **section)
    with pytest.raises(ConfigError, match=message):
        load_train_config(path)


def test_defaults_depend_on_the_mode(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", dataset=tmp_path, run=tmp_path / "run")
    assert load_train_config(path)[1].batch_size == 256
    _, finetune, evaluate = load_train_config(path, ["train.mode=finetune", "evaluate.alpha=0.01"])
    assert (finetune.batch_size, evaluate.alpha) == (64, 0.01)
    assert json.dumps(finetune.result_inputs())
