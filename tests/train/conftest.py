"""A data set and runs that tests of training share and do not change, and one thread for each."""

from pathlib import Path

import pytest
import torch

from support.train_runs import write_dataset, write_run
from train.evaluate.run import evaluate_run


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, image_size=40)
    return root


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head on pictures that overlap, evaluated. Not to be changed."""
    run = write_run(tmp_path_factory.mktemp("one"), mode="head", noise=2.0, num_negatives=300)
    evaluate_run(run)
    return run


@pytest.fixture(scope="session")
def two_targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finetuned detector of cats and dogs, evaluated. Not to be changed."""
    run = write_run(tmp_path_factory.mktemp("two"), targets=("cat", "dog"))
    evaluate_run(run)
    return run


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # test processes share few cores
