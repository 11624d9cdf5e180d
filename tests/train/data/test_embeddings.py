"""Embeddings on local maps: the same numbers, written once, shared, flat in memory."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset import Dataset
from pipeline.errors import BadShard
from pipeline.storage import LocalCache
from support.train_runs import SHORT, read_losses, read_train_rows, run_training, write_dataset
from train.data import embeddings
from train.data.embeddings import MappedEmbeddings
from train.data.rows import TrainRows, read_embeddings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, image_size=32, samples_per_shard=9)
    return root


@pytest.fixture(scope="module")
def rows(dataset: Path) -> TrainRows:
    return read_train_rows(str(dataset), Dataset(str(dataset)).read_generation(), ["cat"])


def test_mapped_embeddings_are_those_of_the_sidecars(
    dataset: Path, rows: TrainRows, tmp_path: Path
) -> None:
    whole = read_embeddings(str(dataset), rows)
    mapped = MappedEmbeddings(str(dataset), rows, 256, LocalCache(tmp_path))
    drawn = np.random.default_rng(0).integers(len(whole), size=500)
    assert len(mapped) == len(whole) == 190
    assert mapped[drawn].dtype == np.float16
    assert np.array_equal(mapped[drawn], whole[drawn])
    names = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len([name for name in names if name.endswith(".f16")]) == len(rows.shards)
    # Another process, another generation: nothing is written again, or even read of the data set.
    again = MappedEmbeddings("/no/such/place", rows, 256, LocalCache(tmp_path))
    assert np.array_equal(again[drawn], whole[drawn])


def test_a_small_bound_only_costs_time(dataset: Path, rows: TrainRows, tmp_path: Path) -> None:
    whole = read_embeddings(str(dataset), rows)
    bound = 4 * 6000  # of 22 files
    mapped = MappedEmbeddings(str(dataset), rows, 256, LocalCache(tmp_path, bound))
    for start in range(0, 190, 19):
        drawn = np.arange(start, start + 19)
        assert np.array_equal(mapped[drawn], whole[drawn])
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= bound


def test_a_run_on_maps_is_the_run_in_memory(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section: dict[str, Any] = SHORT | {"cache_dir": str(tmp_path / "cache")}
    in_memory = run_training(dataset, tmp_path / "a", **section)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(embeddings, "_MAX_IN_MEMORY_BYTES", 0)
    on_maps = run_training(dataset, tmp_path / "b", **section)
    assert list((tmp_path / "cache" / "copies").glob("*.f16"))
    assert read_losses(on_maps) == read_losses(in_memory)


def test_a_damaged_sidecar_names_itself_and_is_not_kept(
    dataset: Path, rows: TrainRows, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "data")
    record = rows.shards[2]
    path = copy / record.sidecar_path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    mapped = MappedEmbeddings(str(copy), rows, 256, LocalCache(tmp_path / "cache"))
    message = rf"{record.sidecar_path} of generation 1: .* sha256 {record.sidecar_sha256}"
    with pytest.raises(BadShard, match=message):
        mapped[rows.starts[[2]]]
    assert not list((tmp_path / "cache").glob("*.f16"))
