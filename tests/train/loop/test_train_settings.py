"""The sections of the config, the weights, the loss and the learning rate."""

import json
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from support.train_runs import write_config
from train.config import load_train_config
from train.loop.optim import Schedule


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
        (
            {"train": {"loss": "ohem", "accumulate": 2}},
            r"train\.accumulate 2 with ohem, which needs the losses of the whole batch",
        ),
        (
            {"train": {"loss": "ohem", "regularization": {"mixup": 0.2}}},
            r"train\.regularization mixup or cutmix with ohem",
        ),
        ({"train": {"regularization": {"cutmix": 1}}}, r"cutmix is about images; mode: head"),
        (
            {"train": {"finetuning": {"layer_decay": 0.5}}},
            r"train\.finetuning .*mode: head has none",
        ),
        ({"train": {"views": 4, "augment": "off"}}, r"train\.views 4 with augment: off"),
        (
            {"train": {"mode": "finetune", "head_steps": 0, "views": 4}},
            r"train\.views 4 are for steps on embeddings; head_steps is 0",
        ),
        ({"train": {"amp": "fp8"}}, r"train\.amp: .*'fp16' or 'off', got 'fp8'"),
        (
            {"train": {"early_stopping": {"metric": "auroc"}}},
            r"train\.early_stopping\.metric: .*'val_tpr_at_fpr', got 'auroc'",
        ),
        ({"train": {"tracker": {"kind": "mlflow"}}}, r"train\.tracker\.project: Field required"),
        ({"train": {"correction": "offsets"}}, r"train\.correction: .*'offset' or 'none'"),
        ({"evaluate": {"calibration": "isotonic"}}, r"evaluate\.calibration: .*'temperature'"),
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
