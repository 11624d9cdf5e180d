"""The training pictures that a run keeps to explain its predictions."""

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.curate.purge_runs import purge_run
from pipeline.dataset import Dataset
from pipeline.dataset.schema import embedding_matrix, with_columns
from pipeline.encoders.preprocessing import crop_any_image
from pipeline.errors import InfinegError
from support.damage import replace_sidecar
from train.config import load_train_config
from train.evaluate import neighbours as choosing
from train.evaluate.run import evaluate_run
from train.model.detector import load_model
from train.model.neighbours import FILE_NAME, Neighbours


def rows_of(dataset: Path, *splits: str) -> pa.Table:
    data = Dataset(str(dataset))
    shards = data.read_generation().shards
    return pa.concat_tables([data.read_sidecar(each) for each in shards if each.split in splits])


def test_the_nearest_of_both_kinds_are_those_of_an_exhaustive_search(run: Path) -> None:
    queries = rows_of(run.parent / "data", "test")
    train = rows_of(run.parent / "data", "train", "val")
    neighbours = Neighbours.load(run)
    assert neighbours is not None
    assert len(neighbours) == len(train), "few enough to keep them all"
    query_ND = embedding_matrix(queries)
    similarity_NR = query_ND @ embedding_matrix(train).T
    is_cat_R = np.array([label == "cat" for label in train["label"].to_pylist()])
    found = neighbours.nearest(query_ND, target="cat", k=3)
    for nearest, similarity_R in zip(found, similarity_NR, strict=True):
        for kind, is_member_R in ((nearest.positives, is_cat_R), (nearest.negatives, ~is_cat_R)):
            best = np.argsort(-np.where(is_member_R, similarity_R, -2), kind="stable")[:3]
            assert [near.key for near in kind] == train["key"].take(best).to_pylist()
            assert [near.uri for near in kind] == train["uri"].take(best).to_pylist()
            wanted = similarity_R[best].tolist()
            assert [near.similarity for near in kind] == pytest.approx(wanted, abs=1e-5)
    assert {near.label for each in found for near in each.positives} == {"cat"}
    assert {near.label for each in found for near in each.negatives} == {""}


def test_a_preview_shows_its_picture(run: Path) -> None:
    train = rows_of(run.parent / "data", "train")
    neighbours = Neighbours.load(run)
    nearest = neighbours.nearest(embedding_matrix(train)[:1], target="cat", k=1)[0]
    found = max([*nearest.positives, *nearest.negatives], key=lambda each: each.similarity)
    assert found.key == train["key"][0].as_py()
    shard = Dataset(str(run.parent / "data")).read_generation().shards[0]
    start, size = train["tar_offset"][0].as_py(), train["tar_size"][0].as_py()
    image = (run.parent / "data" / shard.path).read_bytes()[start : start + size]
    colors = [
        np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), float).mean(axis=(0, 1))
        for each in (image, found.preview)
    ]
    assert colors[0] == pytest.approx(colors[1], abs=6)


def test_the_file_is_bounded_and_keeps_what_is_like_the_target(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr(choosing, "_MOST", 40)
    evaluate_run(copy)
    kept = pq.read_table(copy / FILE_NAME)
    assert [kept["label"].to_pylist().count(label) for label in ("cat", "")] == [40, 40]
    negatives = {
        row["key"]: row["similarity"]
        for row in rows_of(run.parent / "data", "train", "val").to_pylist()
        if not row["label"]
    }
    chosen = [key for key in kept["key"].to_pylist() if key in negatives]
    nearest = sorted(negatives, key=lambda key: -negatives[key])[:30]
    assert set(nearest) <= set(chosen)
    assert min(negatives[key] for key in chosen) < np.median(list(negatives.values()))
    assert all(len(each) < 5000 for each in kept["preview"].to_pylist())


def test_a_finetuned_run_compares_by_its_own_backbone(two_targets: Path) -> None:
    """Embeddings of the data set come from another one."""
    detector, info = load_model(two_targets)
    kept = pq.read_table(two_targets / FILE_NAME)
    dataset = Dataset(str(two_targets.parent / "data"))
    train = {row["key"]: row for row in rows_of(two_targets.parent / "data", "train").to_pylist()}
    assert set(kept["key"].to_pylist()) == set(train), "val is no training of a single model"
    key = kept["key"][0].as_py()
    shard = next(each for each in dataset.read_generation().shards if key.startswith(each.source))
    start, size = train[key]["tar_offset"], train[key]["tar_size"]
    image = Path(dataset.uri(shard.path)).read_bytes()[start : start + size]
    pixels_CHW = crop_any_image(image, info.preprocessing)
    with torch.inference_mode():
        own_D = detector.encoder(torch.from_numpy(pixels_CHW[None]))[0].numpy()
    stored_D = embedding_matrix(kept)[0]
    assert stored_D @ own_D > 0.99
    assert np.abs(stored_D - np.array(train[key]["embedding"], np.float32)).max() > 0.01
    found = Neighbours(kept).nearest(own_D[None], target="dog", k=200)[0]
    assert {near.label for near in found.positives} == {"dog"}
    assert {near.label for near in found.negatives} == {"", "cat"}


def test_a_flipped_bit_is_found_with_a_remedy(run: Path, tmp_path: Path) -> None:
    content = bytearray((run / FILE_NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(InfinegError, match=r"neighbours.parquet: damaged .*infineg evaluate"):
        Neighbours.load(tmp_path)
    assert Neighbours.load(tmp_path / "elsewhere") is None


def test_a_purge_leaves_none_of_a_picture_there(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    before = pq.read_table(copy / FILE_NAME)
    key = before["key"][3].as_py()
    purge_run(str(copy), {key}, lambda _line: None)
    after = Neighbours.load(copy)
    assert len(after) == len(before) - 1
    assert key.encode() not in (copy / FILE_NAME).read_bytes()
    content = bytearray((copy / FILE_NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / FILE_NAME).write_bytes(content)
    with pytest.raises(InfinegError, match="damaged"):
        Neighbours.load(copy)


def test_a_data_set_without_embeddings_has_no_neighbours(run: Path, tmp_path: Path) -> None:
    data = shutil.copytree(run.parent / "data", tmp_path / "data")
    for shard in Dataset(str(data)).read_generation().shards:
        rows = Dataset(str(data)).read_sidecar(shard)
        nothing = pa.nulls(rows.num_rows, rows.schema.field("embedding").type)
        replace_sidecar(data, shard, with_columns(rows, embedding=nothing))
    detector, info = load_model(run)
    _, train_config, _ = load_train_config(run / "config.yaml")
    generation = Dataset(str(data)).read_generation()
    embedder = choosing.RunEmbedder.of(detector, info, train_config, str(data), generation)
    assert choosing.choose_neighbours(embedder) is None
