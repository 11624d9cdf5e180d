from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from pipeline.dataset.schema import embedding_matrix
from support.train_runs import write_dataset
from train.report.neighbours import find_neighbours


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Generation]:
    root = tmp_path_factory.mktemp("data")
    return root, write_dataset(root, samples_per_shard=7)


def _split(root: Path, generation: Generation, split: str) -> tuple[pa.Table, list[str]]:
    """Rows of a split, and the shard of each."""
    shards = [shard for shard in generation.shards if shard.split == split]
    tables = [Dataset(str(root)).read_sidecar(shard) for shard in shards]
    paths = [shard.path for shard, table in zip(shards, tables, strict=True) for _ in table["key"]]
    return pa.concat_tables(tables), paths


def test_neighbours_are_those_of_an_exhaustive_search(
    generation: tuple[Path, Generation],
) -> None:
    root, committed = generation
    test, test_shards = _split(root, committed, "test")
    train, train_shards = _split(root, committed, "train")
    places = list(zip(test["key"].to_pylist(), test_shards, strict=True))[::5]
    cosine_QN = embedding_matrix(test)[::5] @ embedding_matrix(train).T
    found = find_neighbours(str(root), committed, places)
    assert len(train) > 20 * 7, "several shards, or there is nothing to merge"
    for nearest, cosine_N in zip(found, cosine_QN, strict=True):
        best = np.argsort(-cosine_N)[:3].tolist()
        assert [near.key for near in nearest] == train["key"].take(best).to_pylist()
        assert [near.cosine for near in nearest] == pytest.approx(cosine_N[best].tolist())
        assert [near.label for near in nearest] == train["label"].take(best).to_pylist()
        assert [near.shard for near in nearest] == [train_shards[row] for row in best]
    assert {near.label for nearest in found for near in nearest} == {"", "cat"}


def test_neighbours_have_the_location_of_their_image(generation: tuple[Path, Generation]) -> None:
    root, committed = generation
    test, shards = _split(root, committed, "test")
    near = find_neighbours(str(root), committed, [(test["key"][0].as_py(), shards[0])])[0][0]
    with (root / near.shard).open("rb") as tar:
        tar.seek(near.tar_offset)
        assert tar.read(near.tar_size)[:2] == b"\xff\xd8"


def test_nothing_asked_is_nothing_found(generation: tuple[Path, Generation]) -> None:
    root, committed = generation
    assert find_neighbours(str(root), committed, []) == []
