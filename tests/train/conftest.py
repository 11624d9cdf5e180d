"""A small data set that tests of training share and do not change, and one thread for each."""

from pathlib import Path

import pytest
import torch

from support.train_runs import write_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, image_size=40)
    return root


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # test processes share few cores
