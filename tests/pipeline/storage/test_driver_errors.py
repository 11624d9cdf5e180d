"""Errors of storage drivers are known by name: a driver that moves one must not go unnoticed."""

import importlib

import pytest

from pipeline.storage.errors import LOGIN, PERMANENT, STATUS
from pipeline.storage.retry import TRANSIENT

OPTIONAL_DRIVERS = {"azure", "gcsfs", "httpx"}


@pytest.mark.parametrize("name", sorted({*LOGIN, *PERMANENT, *STATUS, *TRANSIENT}))
def test_error_of_a_driver_is_where_its_name_says(name: str) -> None:
    module, _, kind = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), kind)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL_DRIVERS:
            raise
        pytest.skip(f"{error.name} is not installed")
    assert issubclass(found, Exception)
    assert f"{found.__module__}.{found.__qualname__}" == name, "compared with the defining module"
