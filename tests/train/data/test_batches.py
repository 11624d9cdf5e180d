"""The order of the samples, and the batches that come of it."""

import numpy as np
import pytest
import torch

from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from pipeline.encoders.networks import load_encoder
from pipeline.errors import InfinegError
from support.train_runs import ENCODER, EVAL_PROBABILITY, NEGATIVES, read_train_rows, write_dataset
from train.data.batches import AugmentedImages, Batches, CachedEmbeddings, read_eval_batches
from train.data.corrections import LossTerms, loss_terms
from train.data.order import BatchOrder, Stream, shuffle_epoch
from train.data.rows import TrainRows, read_embeddings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Generation]:
    root = tmp_path_factory.mktemp("dataset")
    return str(root), write_dataset(root, num_positives=20, num_negatives=60)


@pytest.fixture(scope="module")
def rows(dataset: tuple[str, Generation]) -> TrainRows:
    return read_train_rows(*dataset, ["cat"])


@pytest.fixture(scope="module")
def terms(rows: TrainRows) -> LossTerms:
    return loss_terms(rows, "weight")


def embeddings(root: str, rows: TrainRows) -> CachedEmbeddings:
    return CachedEmbeddings(read_embeddings(root, rows))


def order_of(rows: TrainRows) -> BatchOrder:
    return BatchOrder(
        [Stream(rows.positives)], [Stream(rows.negatives)],
        num_positives=2, batch_size=8, window=2, seed=0,
    )  # fmt: skip


def test_shuffle_stays_within_the_window_of_shards() -> None:
    shards = [range(start, start + 10) for start in range(0, 100, 10)]
    epoch = shuffle_epoch(shards, window=2, rng=np.random.default_rng(0))
    groups = [set(block // 10) for block in np.split(epoch, 5)]
    assert all(len(group) == 2 for group in groups), "a block reads two shards"
    assert sorted(epoch) == list(range(100))


def test_batch_holds_the_share_of_positives_with_their_weights(
    dataset: tuple[str, Generation], rows: TrainRows, terms: LossTerms
) -> None:
    batch = Batches(rows, terms, order_of(rows), embeddings(dataset[0], rows)).read(3)
    assert batch.targets_BK[:, 0].tolist() == [1, 1] + [0] * 6
    keys = rows.keys.take(batch.rows_B.numpy()).to_pylist()
    probability = {"my_cat": 1.0} | {source: p for source, _, p, _ in NEGATIVES}
    wanted = [1 / probability[key.split("-")[0]] for key in keys]
    assert batch.importance_B.tolist() == pytest.approx(wanted)


def test_embeddings_are_those_of_their_keys(
    dataset: tuple[str, Generation], rows: TrainRows, terms: LossTerms
) -> None:
    root, generation = dataset
    batch = Batches(rows, terms, order_of(rows), embeddings(root, rows)).read(0)
    keys = rows.keys.take(batch.rows_B.numpy()).to_pylist()
    pairs = list(zip(keys, batch.inputs, strict=True))
    for table, embedding_BD in read_eval_batches(
        root, generation, splits=("val",), mode="head", preprocessing=None, batch_size=7
    ):
        pairs += zip(table["key"].to_pylist(), embedding_BD, strict=True)
    by_key = {
        row["key"]: row["embedding"]
        for shard in generation.shards
        for row in Dataset(root).read_sidecar(shard, ("key", "embedding")).to_pylist()
    }
    for key, embedding_D in pairs:
        assert embedding_D.tolist() == by_key[key]


@pytest.mark.parametrize("strength", ["light", "heavy"])
def test_images_are_the_same_whatever_the_workers_and_the_start(
    dataset: tuple[str, Generation], rows: TrainRows, terms: LossTerms, strength: str
) -> None:
    preprocessing = load_encoder(ENCODER).preprocessing
    images = AugmentedImages(
        dataset[0], rows, preprocessing=preprocessing, strength=strength, seed=0
    )  # fmt: skip
    batches = Batches(rows, terms, order_of(rows), images)
    here = list(batches.stream(range(20), workers=0))
    # More batches than the ring has slots, each looked at while it is the current one.
    for mine, theirs in zip(here[1:], batches.stream(range(1, 20), workers=2), strict=True):
        assert torch.equal(mine.inputs, theirs.inputs)
        assert torch.equal(mine.rows_B, theirs.rows_B)
        assert torch.equal(mine.targets_BK, theirs.targets_BK)
    assert here[0].inputs.shape == (8, 3, 32, 32)
    again = images.read(*order_of(rows).batch(0))
    assert torch.equal(again, here[0].inputs)
    first_rows, first_positions = order_of(rows).batch(0)
    assert not torch.equal(images.read(first_rows, first_positions + 100), again)


def test_warm_pictures_belong_to_the_positives(
    dataset: tuple[str, Generation], rows: TrainRows, terms: LossTerms
) -> None:
    preprocessing = load_encoder(ENCODER).preprocessing
    images = AugmentedImages(dataset[0], rows, preprocessing=preprocessing, strength="off", seed=0)
    batch = Batches(rows, terms, order_of(rows), images).read(0)
    red, blue = batch.inputs.float().mean((2, 3))[:, [0, 2]].unbind(1)
    assert torch.equal(red > blue, batch.targets_BK[:, 0] == 1)


@pytest.mark.parametrize("mode", ["head", "finetune"])
def test_evaluation_reads_every_row_of_its_splits_once(
    dataset: tuple[str, Generation], mode: str
) -> None:
    root, generation = dataset
    preprocessing = load_encoder(ENCODER).preprocessing
    batches = list(
        read_eval_batches(
            root, generation, splits=("val", "test"), mode=mode, preprocessing=preprocessing,
            batch_size=7,
        )
    )  # fmt: skip
    keys = [key for table, _ in batches for key in table["key"].to_pylist()]
    wanted = sum(shard.num_samples for shard in generation.shards if shard.split != "train")
    assert len(keys) == len(set(keys)) == wanted
    for table, inputs in batches:
        assert "embedding" not in table.column_names
        assert set(table["split"].to_pylist()) <= {"val", "test"}
        assert inputs.shape == (table.num_rows, *((256,) if mode == "head" else (3, 32, 32)))
        assert inputs.dtype == (torch.float32 if mode == "head" else torch.uint8)
    chances = {p for table, _ in batches for p in table["inclusion_probability"].to_pylist()}
    assert chances == {1.0, EVAL_PROBABILITY}


def test_a_train_split_without_positives_is_refused(dataset: tuple[str, Generation]) -> None:
    root, generation = dataset
    negatives = tuple(shard for shard in generation.shards if not shard.label)
    with pytest.raises(InfinegError, match="no positives in its train split"):
        read_train_rows(root, generation.model_copy(update={"shards": negatives}), ["cat"])
