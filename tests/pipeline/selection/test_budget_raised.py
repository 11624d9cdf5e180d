"""A raised budget keeps all that a smaller one chose, and counts meet it."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset import Dataset
from support.builds import build_inline, config_of, squares

SOURCES = {
    "finite": squares(num_pictures=700, per_partition=50),
    "endless": {
        "name": "squares",
        "kind": "squares",
        "params": {"image_size": 32, "pictures_per_partition": 50},
    },
}


def selected_uris(root: Path) -> set[str]:
    generation = Dataset(str(root)).read_generation()
    return {
        uri
        for shard in generation.shards
        if not shard.label
        for uri in Dataset(str(root)).read_sidecar(shard, ("uri",))["uri"].to_pylist()
    }


@pytest.mark.parametrize("entry", SOURCES.values(), ids=SOURCES)
def test_raised_budget_keeps_what_a_smaller_one_chose(
    tmp_path: Path, entry: dict[str, Any]
) -> None:
    root = tmp_path / "data"
    kept: set[str] = set()
    for budget in (60, 63, 150):
        build_inline(config_of(root, [entry], selection={"budget": budget, "beta": 8.0}))
        now = selected_uris(root)
        assert kept <= now, f"{len(kept - now)} of {len(kept)} are lost at {budget}"
        kept = now
