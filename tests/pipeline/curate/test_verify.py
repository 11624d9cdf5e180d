"""`infineg verify` finds and names what is changed, missing, doubled or contradictory."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.dataset import generation_path
from pipeline.errors import ConfigError, InfinegError
from support.builds import Built, copy_dataset
from support.damage import change_sidecar, flip, rewrite_generation


@pytest.fixture
def root(built: Built, tmp_path: Path) -> Path:
    """A copy to damage."""
    return copy_dataset(built.root, tmp_path / "copy")


def problems_of(root: Path) -> list[str]:
    return verify_dataset(str(root)).problems


def test_an_undamaged_copy_is_sound_because_no_path_in_it_is_absolute(root: Path) -> None:
    assert problems_of(root) == []


@pytest.mark.parametrize("position", [0, 0.01, 0.3, 0.5, 0.7, 0.9, 1])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("shards/train/squares-000001.tar", "sha256 differs from the record"),
        ("shards/train/squares-000001.parquet", "sha256 differs from the record"),
        ("ledger/squares-000001.parquet", "missing, or sha256 differs from the record"),
    ],
)
def test_flipped_bit_is_found_wherever_it_is(
    root: Path, name: str, problem: str, position: float
) -> None:
    flip(root / name, position)
    assert problems_of(root)[0] == f"{name}: {problem}"


@pytest.mark.parametrize(
    "name",
    [
        "shards/val/cats-cat-000000.tar", "shards/train/drawn-000000.parquet",
        "quarantine/strays-000000.tar", "ledger/odd-000001.parquet", "_info.json",
    ],
)  # fmt: skip
def test_missing_file_is_named(root: Path, name: str) -> None:
    (root / name).unlink()
    assert any(name in problem for problem in problems_of(root))


def test_doubled_shard_is_found_by_its_keys(root: Path) -> None:
    generation = Dataset(str(root)).read_generation()
    shard = next(s for s in generation.shards if s.source == "drawn" and s.split == "train")
    update = {}
    for field in ("path", "sidecar_path"):
        name = getattr(shard, field)
        update[field] = name.replace("-000000", "-000007")
        (root / update[field]).write_bytes((root / name).read_bytes())
    doubled = shard.model_copy(update=update)
    rewrite_generation(
        root, generation.model_copy(update={"shards": (*generation.shards, doubled)})
    )
    problems = problems_of(root)
    key = Dataset(str(root)).read_sidecar(shard)["key"][0].as_py()
    assert f"{key}: in shards/train/drawn and {doubled.path}" in problems


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("label", "cat", "{key}: cls is not cat"),
        ("split", "test", "{key}: split test in a train shard"),
        ("inclusion_probability", 0.0, "{key}: inclusion_probability 0.0 is not in (0, 1]"),
        ("tar_size", 7, "{key}: image size differs"),
        ("key", "another", "shards/train/squares-000000.tar: keys of tar and sidecar differ"),
    ],
)
def test_a_sidecar_that_contradicts_its_tar_is_found(
    root: Path, column: str, value: object, problem: str
) -> None:
    shards = Dataset(str(root)).read_generation().shards
    shard = next(s for s in shards if s.source == "squares" and s.split == "train")
    key = change_sidecar(root, shard, column, value)
    assert problem.format(key=key) in problems_of(root)


def change_ledger(root: Path, change: dict[str, object]) -> str:
    """Changes the first row that was not selected and makes checksum and counts fit."""
    generation = Dataset(str(root)).read_generation()
    (source,) = (s for s in generation.sources if s.name == "squares")
    path = root / source.ledger[0].path
    table = pq.read_table(path)
    rows = table.to_pylist()
    row = next(row for row in rows if not row["selected"] and row["split"] == "train")
    row.update(change)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    ledger = source.ledger[0].model_copy(update={"sha256": storage.sha256_of(str(path))})
    changed = source.model_copy(update={"ledger": (ledger,)})
    sources = tuple(changed if s == source else s for s in generation.sources)
    rewrite_generation(root, generation.model_copy(update={"sources": sources}))
    return str(row["key"])


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (
            {"selected": True},
            {
                "{key}: selected against the rule", "squares: other counts",
                "{key}: belongs in shards/train/squares, is in none",
            },
        ),
        ({"reject_reason": "truncated", "selected": True}, {"{key}: rejected and selected"}),
        ({"split": "val"}, {"{key}: in the wrong split"}),
        ({"ordinal": 1}, {"squares: ordinals missing or doubled"}),
    ],
)  # fmt: skip
def test_a_ledger_that_contradicts_the_rules_is_found(
    root: Path, change: dict[str, object], problems: set[str]
) -> None:
    key = change_ledger(root, change)
    assert {problem.format(key=key) for problem in problems} <= set(problems_of(root))


def test_a_sample_in_no_ledger_is_found(root: Path) -> None:
    generation = Dataset(str(root)).read_generation()
    sources = tuple(s for s in generation.sources if s.name != "cats")
    rewrite_generation(root, generation.model_copy(update={"sources": sources}))
    shard = next(s for s in generation.shards if s.source == "cats")
    key = Dataset(str(root)).read_sidecar(shard)["key"][0].as_py()
    assert f"{key}: in a shard but in no ledger" in problems_of(root)


def test_an_outdated_list_for_timm_is_found(root: Path) -> None:
    info = json.loads((root / "_info.json").read_text())
    info["splits"]["train"]["filenames"].pop()
    (root / "_info.json").write_text(json.dumps(info))
    assert problems_of(root) == [
        "_info.json: lists other shards than the latest generation, or is damaged"
    ]


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data set there \(no dataset\.json\)"):
        verify_dataset(str(tmp_path))


def test_record_of_another_version_is_named(root: Path) -> None:
    path = root / generation_path(1)
    content = path.read_text().replace('"number"', '"numero"')
    path.write_text(re.sub(',\n "checksum": .*', "", content))
    with pytest.raises(InfinegError, match=r"000001\.json: not a Generation .*\(number: Field req"):
        verify_dataset(str(root))
