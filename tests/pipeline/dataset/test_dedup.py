"""Every picture once, and on one side of the split."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset.dedup import SeenImages

TELLING = 0x0F0F_3C3C_5A5A_9669


def images(*given: tuple[str, int, str]) -> pa.Table:
    """Name, perceptual hash and split of each."""
    names, looks, splits = zip(*given, strict=True) if given else ((), (), ())
    return pa.table(
        {
            "content_hash": pa.array([f"{hash_of(name):064x}" for name in names], pa.string()),
            "perceptual_hash": pa.array(looks, pa.uint64()),
            "split": pa.array(splits, pa.string()),
        }
    )


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big")


def look(number: int) -> int:
    """Of pictures that have nothing to do with each other."""
    return int(np.random.default_rng(number).integers(0, 2**63)) | 0x8000_0000_0000_0000


def flip(value: int, bits: Sequence[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


def test_the_second_of_equal_bytes_is_a_duplicate() -> None:
    seen = SeenImages()
    first = seen.admit(
        images(("a", look(1), "train"), ("b", look(2), "train"), ("a", look(1), "train"))
    )
    assert first == {2: "duplicate"}
    later = seen.admit(images(("c", look(3), "train"), ("b", look(2), "train")))
    assert later == {1: "duplicate"}, "also of an earlier round"


def test_evaluation_comes_first_wherever_it_stands_in_its_round() -> None:
    rows = images(("a", TELLING, "train"), ("b", flip(TELLING, [3]), "test"))
    assert SeenImages().admit(rows) == {0: "in_eval_set"}


@pytest.mark.parametrize(("bits", "is_near"), [([], True), ([5], True), ([0, 31, 63], True),
                                               ([15, 16, 47, 48], False)])  # fmt: skip
def test_three_bits_make_a_near_duplicate_and_four_do_not(bits: list[int], is_near: bool) -> None:
    seen = SeenImages()
    assert seen.admit(images(("a", TELLING, "val"))) == {}
    found = seen.admit(images(("b", flip(TELLING, bits), "train")))
    assert found == ({0: "in_eval_set"} if is_near else {})


@pytest.mark.parametrize("earlier", ["train", "test"])
def test_what_is_there_already_keeps_its_look_out_of_val(earlier: str) -> None:
    seen = SeenImages()
    seen.admit(images(("a", TELLING, earlier)))
    assert seen.admit(images(("b", flip(TELLING, [1, 2]), "val"))) == {0: "duplicate"}


def test_pictures_of_one_split_may_look_alike() -> None:
    rows = images(("a", TELLING, "train"), ("b", TELLING, "train"), ("c", look(1), "val"))
    assert SeenImages().admit(rows) == {}


@pytest.mark.parametrize("flat", [0, 2**64 - 1, 0b1111111, 0x0101_0101_0000_0000])
def test_flat_pictures_are_told_apart_by_their_bytes_alone(flat: int) -> None:
    seen = SeenImages()
    assert seen.admit(images(("white", flat, "val"))) == {}
    assert seen.admit(images(("other white", flat, "train"))) == {}
    assert seen.admit(images(("white", flat, "train"))) == {0: "in_eval_set"}


def test_rounds_one_by_one_and_from_the_files_give_the_same() -> None:
    rng = np.random.default_rng(0)
    splits = rng.choice(["train", "val", "test"], 400, p=[0.7, 0.15, 0.15])
    rows = images(
        *((str(rng.integers(300)), flip(look(int(rng.integers(60))), [int(rng.integers(64))]), s)
          for s in splits)
    )  # fmt: skip
    at_once = SeenImages()
    first, second = at_once.admit(rows[:200]), at_once.admit(rows[200:])
    assert {"duplicate", "in_eval_set"} == set(first.values())
    kept = [n for n in range(200) if n not in first]
    from_files = SeenImages()
    from_files.add(rows.take(kept))
    assert from_files.admit(rows[200:]) == second
    both = pa.concat_tables(
        [rows.take(kept), rows[200:].take([n for n in range(200) if n not in second])]
    )
    assert SeenImages().admit(both) == {}, "nothing leaks in what was kept"


def test_search_finds_what_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(1)
    base = [look(n) for n in range(50)]
    queries = [flip(base[n % 50], rng.choice(64, int(rng.integers(0, 7)), replace=False).tolist())
               for n in range(300)]  # fmt: skip
    seen = SeenImages()
    seen.admit(images(*((f"b{n}", value, "test") for n, value in enumerate(base))))
    found = seen.admit(images(*((f"q{n}", value, "train") for n, value in enumerate(queries))))
    near = {n for n, q in enumerate(queries) if min((q ^ b).bit_count() for b in base) <= 3}
    assert 50 < len(near) < 250
    assert set(found) == near
