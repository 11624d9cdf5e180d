"""Recursive squares: one colour, or four squares that obey the same law."""

import hashlib
import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.sources import open_source
from pipeline.sources.generated import picture_rng, squares
from support.pictures import first_pictures

GOLDEN = ["c8f55ac59ace4c7f", "e73f8ba27c64492b", "fb5d393d9ddc8d10"]


def split_counts(
    pixels: NDArray[np.uint8], smallest: int, level: int, counts: NDArray[np.int64]
) -> None:
    """Walks the recursive definition: one colour, or four squares that obey it themselves."""
    side = len(pixels)
    counts[level, 0] += 1
    if (pixels == pixels[0, 0]).all():
        return
    assert side > smallest, f"a square of {side} pixels shows more than one colour"
    counts[level, 1] += 1
    half = side // 2
    for y, x in itertools.product((0, half), repeat=2):
        split_counts(pixels[y : y + half, x : x + half], smallest, level + 1, counts)


def test_every_square_is_one_colour_or_four_squares() -> None:
    params = squares.Params(image_size=64, smallest_side=4, split_probability=0.6)
    counts = np.zeros((params.num_levels + 1, 2), np.int64)
    for index in range(300):
        pixels = squares.draw(picture_rng("squares", 0, index), params)
        assert pixels.shape == (64, 64, 3)
        split_counts(pixels, params.smallest_side, 0, counts)
    for visited, split in counts[:-1]:
        sigma = np.sqrt(0.24 / visited)
        assert abs(split / visited - 0.6) < 5 * sigma, "squares of any size split equally often"


@pytest.mark.parametrize(("probability", "num_colours"), [(0.0, 1), (1.0, 16 * 16)])
def test_split_probability_reaches_both_ends(probability: float, num_colours: int) -> None:
    params = squares.Params(image_size=64, smallest_side=4, split_probability=probability)
    pixels = squares.draw(picture_rng("squares", 0, 0), params)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == num_colours


def test_squares_of_an_address_are_the_same_pixels_on_any_machine() -> None:
    digests = [
        hashlib.sha256(squares.draw(picture_rng("squares", 0, i), squares.Params())).hexdigest()
        for i in range(3)
    ]
    assert [digest[:16] for digest in digests] == GOLDEN


@pytest.mark.parametrize("size", [(100, 4), (96, 4), (4, 8)])
def test_sides_that_do_not_halve_evenly_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"power of two, got \d+ / \d"):
        open_source("squares", {"image_size": size[0], "smallest_side": size[1]})


def test_squares_are_verified_absent() -> None:
    (sample,) = first_pictures(squares.Source(squares.Params(image_size=64)), 1)
    assert (sample.label, sample.label_state) == ("", "verified_absent")
    assert (sample.class_name, sample.stratum) == ("squares", "generated")
    assert sample.uri == "squares://0/0"
