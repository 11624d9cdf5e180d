"""A damaged checkpoint is passed over for the one before it; a damaged model is not used."""

import logging
from pathlib import Path

import pytest

from pipeline.errors import InfinegError
from support.damage import flip
from support.train_runs import SHORT, interrupt_training, read_losses, run_training, write_dataset
from train.loop.checkpoint import find_checkpoint
from train.model.detector import load_model
from train.model.info import read_model_info

SECTION = SHORT | {"steps": 16, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "data"
    write_dataset(root, image_size=40)
    return root


@pytest.mark.parametrize("damaged", ["step-000000008.safetensors", "step-000000008.json"])
def test_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    dataset: Path, tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = run_training(dataset, tmp_path / "a", **SECTION)
    run = tmp_path / "b"
    interrupt_training(dataset, run, at=10, **SECTION)
    assert find_checkpoint(run).step == 8
    flip(run / "checkpoints" / damaged)
    caplog.set_level(logging.WARNING)
    assert find_checkpoint(run).step == 4
    assert f"{damaged}: damaged" in caplog.text
    assert "step-000000004.json" in caplog.text
    run_training(dataset, run, resume=True, **SECTION)
    assert read_losses(run) == read_losses(undisturbed)
    weights = [(each / "model.safetensors").read_bytes() for each in (undisturbed, run)]
    assert weights[0] == weights[1]


def test_run_without_a_whole_checkpoint_says_what_to_do(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    interrupt_training(dataset, run, at=10, **SECTION)
    for path in (run / "checkpoints").glob("step-*.safetensors"):
        flip(path)
    with pytest.raises(InfinegError, match=r"damaged.*No checkpoint before it is whole.*remove"):
        run_training(dataset, run, resume=True, **SECTION)


@pytest.mark.parametrize("position", [0, 0.1, 0.5, 0.99, 1])
def test_damaged_model_is_not_used(dataset: Path, tmp_path: Path, position: float) -> None:
    run = run_training(dataset, tmp_path / "run", **SECTION | {"steps": 4})
    for name, message in (
        ("model.safetensors", "changed since it was written"),
        ("model.json", "damaged|not a ModelInfo"),
    ):
        before = (run / name).read_bytes()
        flip(run / name, position)
        with pytest.raises(InfinegError, match=rf"{name}: .*({message})"):
            load_model(run)
        (run / name).write_bytes(before)
    assert read_model_info(run) is not None
