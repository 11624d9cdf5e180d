"""A data set and runs that tests of training share and do not change, and one thread for each."""

from pathlib import Path
from typing import Any

import pytest
import torch

from support.shared import made_once
from support.train_runs import FINETUNE, SHORT, run_training, write_dataset
from train.evaluate.run import evaluate_run


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> Path:
        write_dataset(folder, image_size=40)
        return folder

    return made_once(tmp_path_factory, "dataset", make)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head on embeddings that overlap, evaluated. Not to be changed."""

    def make(folder: Path) -> Path:
        return train_and_evaluate(folder, SHORT | {"steps": 60}, noise=2.0, num_negatives=300)

    return made_once(tmp_path_factory, "one", make)


@pytest.fixture(scope="session")
def two_targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finetuned detector of cats and dogs, evaluated. Not to be changed."""

    def make(folder: Path) -> Path:
        section = FINETUNE | {"steps": 20, "head_steps": 0}
        return train_and_evaluate(folder, section, targets=("cat", "dog"))

    return made_once(tmp_path_factory, "two", make)


def train_and_evaluate(folder: Path, section: dict[str, Any], **of_data: Any) -> Path:
    write_dataset(folder / "data", **of_data)
    run = run_training(folder / "data", folder / "run", **section | {"batch_size": 32})
    evaluate_run(run)
    return run


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # test processes share few cores
