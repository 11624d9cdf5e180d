"""Readers that know nothing of this project open the shards. Ray Data: cluster/test_cluster.py."""

import gc
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import timm.data
import webdataset

from pipeline.dataset import Dataset
from support.builds import Built, sidecar_rows

# webdataset leaves its files to the garbage collector, and timm its readers.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
# The regular expression by which WebDataset readers split a member's name into key and field.
WEBDATASET_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Here, where its warnings are known, and not in the middle of another test."""
    yield
    gc.collect()


def paths(built: Built) -> list[str]:
    return [str(built.root / shard.path) for shard in built.generation.shards]


@pytest.fixture(scope="module")
def expected(built: Built) -> dict[str, int]:
    """Label index by key, of all shards."""
    rows = sidecar_rows(built.root)
    labels = ["", *built.config.target_names]
    columns = (rows[name].to_pylist() for name in ("key", "label"))
    return {key: labels.index(label) for key, label in zip(*columns, strict=True)}


def check(found: Iterable[tuple[str, int]], expected: dict[str, int]) -> None:
    pairs = list(found)
    assert dict(pairs) == expected
    assert set(Counter(key for key, _ in pairs).values()) == {1}
    assert {0, 1} == set(expected.values())


def test_member_names_are_cut_where_they_should_be(built: Built, expected: dict[str, int]) -> None:
    for path in paths(built):
        with tarfile.open(path) as archive:
            names = archive.getnames()
        matches = [WEBDATASET_NAME.match(name) for name in names]
        assert all(match is not None and match[1] in expected for match in matches), names
        fields = [match[2] for match in matches if match is not None]
        assert fields == ["cls", "jpg", "json"] * (len(names) // 3), "a key with a dot is cut there"
        keys = [match[1] for match in matches if match is not None]
        assert [list(keys[i : i + 3]) for i in range(0, len(keys), 3)] == [
            [key] * 3 for key in dict.fromkeys(keys)
        ], "members of a sample must be neighbours"


def test_webdataset_reads_the_shards(built: Built, expected: dict[str, int]) -> None:
    stream = webdataset.WebDataset(paths(built), shardshuffle=False).decode("rgb8")
    samples: list[dict[str, Any]] = list(stream)
    check(((sample["__key__"], sample["cls"]) for sample in samples), expected)
    for sample in samples:
        about = sample["json"]
        assert about["key"] == sample["__key__"]
        assert sample["jpg"].shape == (about["height"], about["width"], 3)


def test_json_member_says_what_the_sidecar_says(built: Built) -> None:
    rows = sidecar_rows(built.root)
    stream = webdataset.WebDataset(paths(built), shardshuffle=False).decode()
    about = {sample["__key__"]: sample["json"] for sample in stream}
    encoder = Dataset(str(built.root)).read_info().encoder
    assert {said.pop("encoder") for said in about.values()} == {encoder}
    assert {said.pop("generation") for said in about.values()} == {1}
    fields = sorted(next(iter(about.values())))
    assert {"key", "uri", "label_state", "inclusion_probability", "license"} <= set(fields)
    for row in rows.select(fields).to_pylist():
        assert about[row["key"]] == row


def test_hugging_face_datasets_streams_the_shards(
    built: Built, expected: dict[str, int], tmp_path: Path
) -> None:
    stream = datasets.load_dataset(
        "webdataset",
        data_files={"train": paths(built)},
        split="train",
        streaming=True,
        cache_dir=str(tmp_path),
    )
    samples = list(stream)
    check(((sample["__key__"], sample["cls"]) for sample in samples), expected)
    for sample in samples:
        assert sample["jpg"].size == (sample["json"]["width"], sample["json"]["height"])


@pytest.mark.parametrize(("name", "split"), [("train", "train"), ("validation", "val")])
def test_timm_reads_the_splits_by_info_json(built: Built, name: str, split: str) -> None:
    dataset = timm.data.create_dataset("wds/cats", root=str(built.root), split=name)
    rows = sidecar_rows(built.root).to_pylist()
    expected = Counter(
        (row["width"], row["height"], int(row["label"] == "cat"))
        for row in rows
        if row["split"] == split
    )
    assert len(dataset) == sum(expected.values())
    assert Counter((*image.size, target) for image, target in dataset) == expected
