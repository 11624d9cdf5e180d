"""A missing or damaged shard names itself, and stops the run or is left out, as the policy says."""

import gc
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation, ShardRecord
from pipeline.encoders.networks import load_encoder
from pipeline.errors import BadShard, InfinegError
from support.train_runs import (
    ENCODER,
    SHORT,
    interrupt_training,
    read_losses,
    read_train_rows,
    run_training,
    watch_keys,
    write_dataset,
)
from train.data.batches import AugmentedImages, read_eval_batches
from train.data.images import ShardImages
from train.data.rows import TrainRows
from train.model.info import read_model_info

FINETUNE: dict[str, Any] = SHORT | {"mode": "finetune", "head_steps": 0, "steps": 6}
SKIP = {"on_bad_shard": "skip"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, num_positives=20, num_negatives=90, image_size=32, samples_per_shard=10)
    return root


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "data"))


def train_shards(root: Path) -> list[ShardRecord]:
    return [
        shard for shard in Dataset(str(root)).read_generation().shards if shard.split == "train"
    ]


def damage_image(root: Path, shard: ShardRecord, row: int) -> dict[str, Any]:
    """Noise over the inside of one JPEG; returns its row."""
    about = Dataset(str(root)).read_sidecar(shard, ("key", "tar_offset", "tar_size"))
    about = about.slice(row, 1).to_pylist()[0]
    with (root / shard.path).open("r+b") as file:
        file.seek(about["tar_offset"])
        file.write(b"\0" * about["tar_size"])
    return dict(about)


def images_of(root: Path, policy: str, **settings: Any) -> tuple[TrainRows, AugmentedImages]:
    rows = read_train_rows(str(root), Dataset(str(root)).read_generation(), ["cat"])
    images = AugmentedImages(
        str(root), rows, preprocessing=load_encoder(ENCODER).preprocessing, strength="off",
        seed=0, on_bad_shard=policy, **settings,
    )  # fmt: skip
    return rows, images


@pytest.mark.parametrize("kind", ["missing", "short"])
def test_a_bad_tar_names_itself_before_the_first_step(
    dataset: Path, tmp_path: Path, kind: str
) -> None:
    shard = train_shards(dataset)[3]
    path = dataset / shard.path
    seen = "it is missing"
    if kind == "short":
        path.write_bytes(path.read_bytes()[:-512])
        seen = f"it has {shard.size_bytes - 512:,} bytes"
    else:
        path.unlink()
    message = re.escape(
        f"shard {path} of generation 1: {seen}; its record says {shard.size_bytes:,} bytes, "
        f"sha256 {shard.sha256}"
    )
    with pytest.raises(BadShard, match=message):
        run_training(dataset, tmp_path / "run", **FINETUNE)
    assert not (tmp_path / "run").exists()
    run_training(dataset, tmp_path / "head", **SHORT | {"steps": 2})  # which needs no tar


@pytest.mark.parametrize("kind", ["missing", "cut", "another"])
def test_a_bad_sidecar_names_itself(dataset: Path, tmp_path: Path, kind: str) -> None:
    first, second = train_shards(dataset)[2:4]
    path = dataset / first.sidecar_path
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_bytes((dataset / second.sidecar_path).read_bytes())
    if kind == "another":  # with the same number of rows: only its hash differs
        run_training(dataset, tmp_path / "skip", **SHORT | {"steps": 2} | SKIP)
        info = read_model_info(tmp_path / "skip")
        assert info.segments[0].skipped == (first.path,)
        return
    with pytest.raises(
        BadShard, match=rf"shard {path} of generation 1: .*10 rows, sha256 {first.sidecar_sha256}"
    ):
        run_training(dataset, tmp_path / "run", **SHORT)


def test_skipped_shards_are_recorded_and_a_resume_draws_the_same(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, worse = train_shards(dataset)[3], train_shards(dataset)[6]
    (dataset / bad.path).rename(tmp_path / "bad.tar")
    section = FINETUNE | SKIP | {"steps": 12}
    keys = watch_keys(monkeypatch)
    undisturbed = run_training(dataset, tmp_path / "a", **section)
    prefix = f"{bad.source}-"
    lost = {k for k in _keys_of(dataset, bad) if k.startswith(prefix)}
    assert lost
    assert not lost & set(keys)
    assert f"training without a shard. shard {dataset / bad.path}" in caplog.text
    assert "left out 1 of 11 shards, 10 samples" in caplog.text
    interrupt_training(dataset, tmp_path / "b", at=6, **section)
    # It is back, and stays out: the order of a run does not change behind its back.
    (tmp_path / "bad.tar").rename(dataset / bad.path)
    resumed = run_training(dataset, tmp_path / "b", resume=True, **section)
    assert read_losses(resumed) == read_losses(undisturbed)
    assert not lost & set(keys)
    # One more goes: another segment, from the checkpoint on.
    interrupt_training(dataset, tmp_path / "c", at=6, **section)
    (dataset / worse.path).unlink()
    info = read_model_info(run_training(dataset, tmp_path / "c", resume=True, **section))
    found = [(s.generation, s.first_step, s.skipped) for s in info.segments]
    assert found == [(1, 0, ()), (1, 4, (worse.path,))]


def _keys_of(root: Path, shard: ShardRecord) -> set[str]:
    return set(Dataset(str(root)).read_sidecar(shard, ("key",))["key"].to_pylist())


def test_an_image_that_cannot_be_decoded_names_itself_or_is_replaced_and_told(
    dataset: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    about = damage_image(dataset, train_shards(dataset)[1], 9)
    rows, images = images_of(dataset, "stop")
    drawn = np.arange(15, 25)  # row 19 is the damaged one
    message = rf"generation 1: image {about['key']} at offset {about['tar_offset']:,}, "
    with pytest.raises(BadShard, match=message):
        images.read(drawn, drawn)
    pixels = images_of(dataset, "skip")[1].read(drawn, drawn)
    again = images_of(dataset, "skip")[1].read(drawn[::-1].copy(), drawn[::-1].copy()).flip(0)
    assert torch.equal(pixels, again), "in any order"
    intact = images_of(whole, "stop")[1].read(np.arange(rows.starts[-1]), np.arange(110))
    assert torch.equal(pixels[4], intact[10]), "the next of its shard, from the front"
    others = [i for i in range(10) if i != 4]
    assert torch.equal(pixels[others], intact[drawn[others]])
    stand_in = rows.keys[10].as_py()
    assert f"{stand_in} replaces {about['key']}, 1 samples so far" in caplog.text


def test_a_worker_process_names_a_damaged_image(dataset: Path, tmp_path: Path) -> None:
    about = damage_image(dataset, train_shards(dataset)[1], 9)
    section = FINETUNE | {"workers": 1, "steps": 20}
    with pytest.raises(InfinegError, match=rf"image {about['key']} at offset"):
        run_training(dataset, tmp_path / "run", **section)
    run_training(dataset, tmp_path / "skip", **section | SKIP)


def test_a_shard_that_goes_in_the_middle_is_replaced_by_the_next_of_its_label(
    dataset: Path, whole: Path
) -> None:
    rows, images = images_of(dataset, "skip")
    shards = train_shards(dataset)
    last = max(n for n, shard in enumerate(shards) if not shard.label)
    (dataset / shards[last].path).unlink()
    row = int(rows.starts[last]) + 3
    pixels = images.read(np.array([row]), np.array([0]))
    first = min(n for n, shard in enumerate(shards) if not shard.label)
    wanted = images_of(whole, "stop")[1].read(rows.starts[[first]], np.array([0]))
    assert torch.equal(pixels, wanted)


def test_evaluation_names_a_bad_shard_and_image(dataset: Path) -> None:
    generation = Dataset(str(dataset)).read_generation()
    preprocessing = load_encoder(ENCODER).preprocessing
    of_val = [shard for shard in generation.shards if shard.split == "val"]
    about = damage_image(dataset, of_val[0], 2)

    def read() -> None:
        for _ in read_eval_batches(
            str(dataset), generation, splits=("val",), mode="finetune", preprocessing=preprocessing
        ):
            pass

    with pytest.raises(BadShard, match=rf"image {about['key']} at offset"):
        read()
    (dataset / of_val[0].path).unlink()
    with pytest.raises(BadShard, match=rf"{of_val[0].path} of generation 1: it is missing"):
        read()


def test_embeddings_of_another_width_are_refused_before_the_first_step(
    dataset: Path, tmp_path: Path
) -> None:
    info = Dataset(str(dataset)).read_info()
    Dataset(str(dataset)).write_info(info.model_copy(update={"embedding_dim": 128}))
    with pytest.raises(InfinegError, match=r"embeddings of 256 numbers, but dataset.json says 128"):
        run_training(dataset, tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def on_s3(whole: Path, s3_root: str) -> tuple[str, Generation]:
    """The same on S3, but for one tar, of which one byte is another."""
    generation = Dataset(str(whole)).read_generation()
    for path in whole.rglob("*"):
        if path.is_file():
            storage.write_atomic(f"{s3_root}/{path.relative_to(whole)}", path.read_bytes())
    bad = generation.shards[1]
    content = bytearray((whole / bad.path).read_bytes())
    content[700] ^= 1
    storage.write_atomic(f"{s3_root}/{bad.path}", bytes(content))
    return s3_root, generation


def test_a_remote_shard_is_checked_by_its_hash_as_it_is_fetched(
    on_s3: tuple[str, Generation], tmp_path: Path
) -> None:
    root, generation = on_s3
    images = ShardImages(root, generation.shards, str(tmp_path), generation=1)
    assert images.read(0, 512, 10)
    bad = generation.shards[1]
    message = rf"{bad.path} of generation 1: it has {bad.size_bytes:,} bytes, sha256 \w+; its .*"
    with pytest.raises(BadShard, match=message + bad.sha256):
        images.read(1, 512, 10)
    kept = {path.name for path in (tmp_path / "copies").iterdir()}
    assert kept == {f"{generation.shards[0].sha256[:32]}.tar"}, "what is damaged is not kept"
    storage.remove_many([f"{root}/{bad.path}"])
    with pytest.raises(BadShard, match="it is missing"):
        images.read(1, 512, 10)


# webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_the_same_bytes_by_key(whole: Path) -> None:
    """What the loader cuts out of a tar by offset and size is what a tar reader finds there."""
    rows = read_train_rows(str(whole), Dataset(str(whole)).read_generation(), ["cat"])
    images = ShardImages(str(whole), rows.shards)
    ours = {
        rows.keys[row].as_py(): images.read(
            int(rows.shard_of(np.array([row]))[0]),
            int(rows.tar_offset_N[row]),
            int(rows.tar_size_N[row]),
        )
        for row in range(int(rows.starts[-1]))
    }
    paths = [str(whole / shard.path) for shard in rows.shards]
    theirs = {s["__key__"]: s["jpg"] for s in webdataset.WebDataset(paths, shardshuffle=False)}
    gc.collect()
    assert theirs == ours
