"""Seeds of `make bench`'s fuzzer (tests/bench/test_fuzz.py) that have found something."""

import contextlib
import gc
from pathlib import Path

import pytest

from pipeline.errors import InfinegError
from support.fuzzing import SUBJECTS, damaged_by

FOUND = [("metadata.csv", 29), ("config", 0)]


# `datasets` leaves a file open that it could not read, which is closed when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("subject", "seed"), FOUND)
def test_a_damaged_input_is_read_or_refused(subject: str, seed: int, tmp_path: Path) -> None:
    read = SUBJECTS[subject](tmp_path / "whole")
    read()
    with damaged_by(subject, seed, tmp_path), contextlib.suppress(InfinegError):
        read()
    gc.collect()
