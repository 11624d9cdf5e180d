"""A small data set of drawn pictures to train on, and one thread, which gives the same bits."""

from pathlib import Path

import pytest
import torch

from support.train_runs import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, image_size=40)
    return root


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
