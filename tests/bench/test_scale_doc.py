"""The table of docs/scale.md is what its rates give."""

import re
from pathlib import Path

import scale_model

TEXT = (Path(__file__).parents[2] / "docs/scale.md").read_text()


def test_table_follows_from_the_rates() -> None:
    assert scale_model.table() in TEXT, "python tests/bench/scale_model.py prints it"


def test_rates_are_those_that_the_text_tells() -> None:
    found = {
        name: float(value.replace(",", ""))
        for value, name in re.findall(r"\| ([\d.,]+) \| `([A-Z_]+)`", TEXT)
    }
    assert found == {name: getattr(scale_model, name) for name in found}
    assert len(found) == 7
