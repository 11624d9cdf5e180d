"""Data sets of version 0.1 open, unless they depend on a setting that is removed."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.build.changes import find_changes
from pipeline.dataset import Dataset
from pipeline.errors import InfinegError
from support.builds import Built, build_inline, config_of, copy_dataset

CASCADE = {"intercept": 0.1, "slope": 0.9, "expected_recall": 1.0, "expected_full_share": 0.1}


def add_field(path: Path, name: str, value: object) -> None:
    content = {**json.loads(path.read_text()), name: value}
    content.pop("checksum", None)  # which that version did not write
    path.write_text(json.dumps(content))


def test_data_set_without_the_removed_settings_opens_and_is_up_to_date(
    built: Built, tmp_path: Path
) -> None:
    root = copy_dataset(built.root, tmp_path / "data")
    add_field(root / "dataset.json", "cheap_encoder", None)
    add_field(root / "plans/squares.json", "cascade", None)
    older, dataset = Dataset(str(root)), Dataset(str(built.root))
    assert older.read_info() == dataset.read_info()
    assert older.read_plan("squares") == dataset.read_plan("squares")
    assert not find_changes(config_of(root, built.entries), older.read_latest())


def test_data_set_of_a_cascade_is_refused(built: Built, tmp_path: Path) -> None:
    root = copy_dataset(built.root, tmp_path / "data")
    refused = r"\(built with selection\.cascade by version 0\.1; build it again, or use 0\.1\)"
    add_field(root / "plans/squares.json", "cascade", CASCADE)
    with pytest.raises(InfinegError, match=rf"plans/squares\.json: not a SourcePlan .*{refused}"):
        Dataset(str(root)).read_plan("squares")
    add_field(root / "dataset.json", "cheap_encoder", "lite0:96px")
    with pytest.raises(InfinegError, match=rf"dataset\.json: not a DatasetInfo .*{refused}"):
        build_inline(config_of(root, built.entries))
    shutil.rmtree(root / "plans")
    build = {"embeddings_from": str(root)}
    with pytest.raises(InfinegError, match=refused):
        build_inline(config_of(tmp_path / "rescored", built.entries, build=build))
