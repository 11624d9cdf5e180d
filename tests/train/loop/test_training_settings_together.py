"""A resumed run ends the same with all settings at once, and one on two processes with any."""

from pathlib import Path
from typing import Any

import pytest
from test_early_stopping import WILD, read_checks
from test_trainer import LOSSES

from support.train_runs import (
    FINETUNE,
    SHORT,
    interrupt_training,
    read_log,
    read_losses,
    run_ranks,
    run_training,
    train_all,
    write_dataset,
    write_run_config,
)
from train.model.info import read_model_info

COMMON: dict[str, Any] = {
    "views": 3, "augment": "trivialaugment", "max_grad_norm": 0.5, "ema_decay": 0.9,
    "accumulate": 2, "amp": "bf16",
    "early_stopping": {"metric": "val_loss", "every": 3, "patience": 9},
}  # fmt: skip
EVERYTHING: dict[str, dict[str, Any]] = {
    "head": SHORT | COMMON | {"regularization": {"label_smoothing": 0.1, "mixup": 0.4}},
    "finetune": FINETUNE
    | COMMON
    | {
        "regularization": {"label_smoothing": 0.1, "mixup": 0.4, "cutmix": 1.0},
        "finetuning": {
            "layer_decay": 0.7,
            "unfreeze": [[5, 1], [9, "all"]],
            "image_sizes": [[0, 32], [0.4, 40]],
        },
    },
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, image_size=40, noise=1.0)
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("mode", EVERYTHING)
@pytest.mark.parametrize("stop", [6, 10])
def test_resumed_run_with_everything_on_repeats_the_undisturbed_one(
    dataset: Path, tmp_path: Path, mode: str, stop: int
) -> None:
    section = EVERYTHING[mode]
    undisturbed = run_training(dataset, tmp_path / "a", **section)
    interrupt_training(dataset, tmp_path / "b", at=stop, **section)
    assert read_model_info(tmp_path / "b") is None
    resumed = run_training(dataset, tmp_path / "b", resume=True, **section)
    assert log_without_clock(resumed) == log_without_clock(undisturbed)
    for name in ("model.safetensors", "checkpoints/best.safetensors", "checkpoints/best.json"):
        assert (resumed / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_every_setting_changes_what_comes_out(dataset: Path, tmp_path: Path) -> None:
    """Otherwise the tests of resuming would compare nothing."""
    head = SHORT | {"dropout": 0.0}
    plain = read_losses(run_training(dataset, tmp_path / "plain", **head))
    for name in ("views", "max_grad_norm", "amp", "regularization"):
        section = head | {name: EVERYTHING["head"][name]}
        assert read_losses(run_training(dataset, tmp_path / name, **section)) != plain, name


@pytest.mark.timeout(180)  # two more processes import torch: slow where cores are few
def test_two_processes_train_like_one(dataset: Path, tmp_path: Path) -> None:
    """Except dropout and mixing, which are those of a process, and operations that round."""
    two_targets = tmp_path / "two_targets"
    write_dataset(two_targets, targets=("cat", "dog"), noise=2.0, image_size=40)
    same = {"dropout": 0.0}
    plain = {"plain_head": SHORT | same, "plain_finetune": FINETUNE | same | {"workers": 1}}
    plain |= {name: SHORT | same | section for name, section in LOSSES.items()}
    without = {"regularization": {"label_smoothing": 0.1}, "dropout": 0.0, "amp": "off"}
    sections = {mode: section | without for mode, section in EVERYTHING.items()} | plain
    sections["stops_early"] = WILD | same
    configs = []
    for name, section in sections.items():
        root = two_targets if name in LOSSES else dataset
        run_training(root, tmp_path / "one" / name, **section)
        configs.append(write_run_config(root, tmp_path / "two" / name, **section))
    run_ranks(train_all, configs)
    for name in plain:
        alone, shared = (read_losses(tmp_path / number / name) for number in ("one", "two"))
        assert shared == pytest.approx(alone, abs=1e-5)
    for name in EVERYTHING:
        one, two = (log_without_clock(tmp_path / number / name) for number in ("one", "two"))
        for mine, theirs in zip(one, two, strict=True):
            assert theirs == pytest.approx(mine, abs=1e-4)
    checks = [
        read_checks(tmp_path / number / "stops_early", "val_auroc") for number in ("one", "two")
    ]
    assert max(checks[0]) < WILD["steps"]
    assert list(checks[0]) == list(checks[1]), "both processes stop where one does"
    assert list(checks[1].values()) == pytest.approx(list(checks[0].values()), abs=1e-3)


def log_without_clock(run: Path) -> list[dict[str, float]]:
    clock = ("samples_per_s", "data_wait")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_log(run)]
