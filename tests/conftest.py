"""A data set built once by the real thing, for all tests that only read it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from builds import config_of, write_inputs

from pipeline.build import build
from pipeline.config import Config
from pipeline.records import Generation

# Of Ray about its own defaults, which no caller can avoid.
_RAY_WARNINGS = ("ignore::DeprecationWarning:ray.data.context",)


def pytest_configure(config: pytest.Config) -> None:
    for warning in _RAY_WARNINGS:
        config.addinivalue_line("filterwarnings", warning)


@dataclass(frozen=True)
class Built:
    """A data set, what it was built from, and what the build returned. Not to be changed."""

    root: Path
    entries: list[dict[str, Any]]
    config: Config
    generation: Generation


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The machine's cores are shared with Ray."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def built(
    entries: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """Four sources, built by Ray with two workers."""
    root = tmp_path_factory.mktemp("built") / "data"
    config = config_of(root, entries)
    generation, is_new = build(config)
    assert is_new
    return Built(root, entries, config, generation)
