"""The reference bank: which positives it holds, and what is similar to them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipeline.dataset import Dataset
from pipeline.errors import InfinegError
from pipeline.selection.reference import KnownPositives, ReferenceBank, read_bank, write_reference
from pipeline.worker.steps.score import score_batch


def hash_of(number: int) -> int:
    return 0x0F1E_2D3C_4B5A_6978 ^ (0x0101_0101_0101_0101 * number)


def positives_table(num_images: int = 60, dim: int = 8) -> pa.Table:
    """Each image twice, its second embedding off by a bit as from another batch."""
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(num_images, dim))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    both = np.concatenate([embedding, embedding + 2e-3]).astype(np.float16)
    hashes = [f"{n:064x}" for n in range(num_images)] * 2
    return pa.table(
        {
            "key": [f"k-{n:03d}" for n in range(2 * num_images)],
            "content_hash": hashes,
            "perceptual_hash": pa.array([hash_of(n) for n in range(num_images)] * 2, pa.uint64()),
            "split": ["train" if n % 4 else "val" for n in range(num_images)] * 2,
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(both.reshape(-1)), dim),
        }
    )


def test_reference_does_not_depend_on_the_order_of_reading(tmp_path: Path) -> None:
    positives = positives_table()
    orders = [np.arange(120), np.arange(120)[::-1], np.random.default_rng(1).permutation(120)]
    roots = [str(tmp_path / str(number)) for number in range(len(orders))]
    infos = [
        write_reference(root, positives.take(order), num_neighbors=5)
        for root, order in zip(roots, orders, strict=True)
    ]
    assert infos[0] == infos[1] == infos[2]
    banks = [Dataset(root).read_table("reference.parquet") for root in roots]
    assert banks[0].equals(banks[1])
    assert banks[0].equals(banks[2])


def test_bank_holds_only_train_positives_and_knows_the_others(tmp_path: Path) -> None:
    info = write_reference(str(tmp_path), positives_table(), num_neighbors=5)
    bank = read_bank(Dataset(str(tmp_path)), num_neighbors=5)
    assert (info.num_embeddings, info.num_positives) == (45, 60)
    assert len(bank.content_hashes) == 45
    assert len(bank.positives.content_hashes) == 60
    assert all(int(content_hash, 16) % 4 for content_hash in bank.content_hashes)
    assert info.mid < info.near < info.ceiling < info.median


def test_hashes_of_positives_of_every_split_are_known(tmp_path: Path) -> None:
    write_reference(str(tmp_path), positives_table(), num_neighbors=5)
    known = read_bank(Dataset(str(tmp_path)), num_neighbors=5).positives.near_duplicates
    of_val, of_train = hash_of(4), hash_of(5)
    asked = np.array([of_val, of_train ^ 0b111, ~np.uint64(of_train)], np.uint64)
    assert known.resembles(asked).tolist() == [True, True, False]


def test_older_reference_without_perceptual_hashes_is_read(tmp_path: Path) -> None:
    info = write_reference(str(tmp_path), positives_table(), num_neighbors=5)
    Dataset(str(tmp_path)).write_reference(info.model_copy(update={"bank_sha256": ""}))
    path = tmp_path / "reference.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["perceptual_hash"]), path)
    bank = read_bank(Dataset(str(tmp_path)), num_neighbors=5)
    assert len(bank.positives.content_hashes) == 60
    assert not bank.positives.near_duplicates.resembles(np.array([hash_of(4)], np.uint64)).any()


def test_positives_of_which_none_is_in_train_are_refused(tmp_path: Path) -> None:
    rows = positives_table()
    others = rows.filter(pc.not_equal(rows["split"], "train"))
    with pytest.raises(
        InfinegError, match="positives: 0 usable distinct images in the train split"
    ):
        write_reference(str(tmp_path), others, num_neighbors=5)


def test_too_few_positives_are_refused(tmp_path: Path) -> None:
    few = positives_table().slice(0, 5)
    with pytest.raises(InfinegError, match="3 usable distinct images in the train split of 5"):
        write_reference(str(tmp_path), few, num_neighbors=5)
    info = write_reference(str(tmp_path), positives_table().slice(0, 8), num_neighbors=5)
    assert info.num_embeddings < 10
    assert info.mid < info.near < info.ceiling < info.median


def normalised(rng: np.random.Generator, num_rows: int, dim: int = 16) -> NDArray[np.float32]:
    embedding = rng.normal(size=(num_rows, dim)).astype(np.float32)
    return embedding / np.linalg.norm(embedding, axis=1, keepdims=True)


@pytest.mark.parametrize("num_neighbors", [1, 5, 100])
def test_similarity_is_the_mean_of_the_nearest_but_oneself(num_neighbors: int) -> None:
    rng = np.random.default_rng(3)
    reference = normalised(rng, 30)
    hashes = tuple(f"h{n}" for n in range(30))
    bank = ReferenceBank(reference, hashes, KnownPositives(), num_neighbors)
    queries = np.concatenate([normalised(rng, 4), reference[:2]])
    found = bank.similarity(queries, ["other"] * 4 + ["h0", "h1"])
    cosines = queries.astype(np.float64) @ reference.T.astype(np.float64)
    cosines[4, 0] = cosines[5, 1] = -np.inf
    k = min(num_neighbors, 29)
    expected = [np.sort(row)[::-1][:k].mean() for row in cosines]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rows_without_embedding_have_no_similarity() -> None:
    reference = normalised(np.random.default_rng(4), 12)
    bank = ReferenceBank(reference, tuple("abcdefghijkl"), KnownPositives(), 1)
    rows = pa.table(
        {
            "content_hash": ["x", "y"],
            "embedding": pa.array(
                [reference[3].astype(np.float16), None], pa.list_(pa.float16(), 16)
            ),
        }
    )
    similarity = score_batch(rows, bank)["similarity"].to_pylist()
    assert similarity == [pytest.approx(1, abs=1e-3), None]
    nothing = score_batch(rows.slice(1), bank)["similarity"].to_pylist()
    assert nothing == [None]
