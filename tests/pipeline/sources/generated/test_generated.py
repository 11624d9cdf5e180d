"""Recursive squares, and what all generators promise.

    python tests/pipeline/sources/generated/test_generated.py

draws the contact sheets under docs/ again.
"""

import hashlib
import itertools
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.sources import generated, open_source
from pipeline.sources.generated import picture_rng, squares
from support.pictures import first_pictures, pixels_at

DOCS = Path(__file__).parents[4] / "docs/images"
SHEETS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "squares.jpg": [("squares", {"image_size": 64, "smallest_side": 2})],
    "shapes.jpg": [
        ("shapes", {"content": ["cat"]}),
        ("shapes", {"content": ["cat"], "seed": 1}),
        ("shapes", {"content": ["near"]}),
        ("shapes", {"content": ["near"], "seed": 2}),
        ("shapes", {"content": ["sofa", "car", "house", "tree", "sign", "bicycle", "far"]}),
    ],
    "generated.jpg": [
        (kind, {"seed": seed, **params})
        for kind, params in {
            "noise": {},
            "dead_leaves": {},
            "fractal": {},
            "gradients_and_blanks": {},
            "text_and_ui": {},
            "collage": {
                "sources": [
                    {"kind": "shapes", "params": {"content": ["far", "near"]}},
                    {"kind": "dead_leaves"},
                    {"kind": "text_and_ui"},
                ]
            },
        }.items()
        for seed in (0, 1)
    ],
}
# Every generator, and what it cannot do without.
GENERATORS: dict[str, dict[str, Any]] = {
    module.name: {"sources": [{"kind": "squares"}]} if module.name == "collage" else {}
    for module in pkgutil.iter_modules(generated.__path__)
}

GOLDEN_SQUARES = ["c8f55ac59ace4c7f", "e73f8ba27c64492b", "fb5d393d9ddc8d10"]


def contact_sheet(rows: list[tuple[str, dict[str, Any]]]) -> NDArray[np.uint8]:
    """The first ten pictures of each source, a row each, at 96 pixels."""
    pictures = [first_pictures(open_source(kind, params), 10) for kind, params in rows]
    return np.vstack([np.hstack([pixels_at(s.image, 96) for s in row]) for row in pictures])


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
    assert [digest[:16] for digest in digests] == GOLDEN_SQUARES


def test_squares_differ() -> None:
    params = squares.Params(num_pictures=200)
    images = [s.image for s in first_pictures(squares.Source(params), 200)]
    assert len(set(images)) == 200


@pytest.mark.parametrize("size", [(100, 4), (96, 4), (4, 8)])
def test_sides_that_do_not_halve_evenly_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"power of two, got \d+ / \d"):
        open_source("squares", {"image_size": size[0], "smallest_side": size[1]})


@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_never_end_unless_told(kind: str) -> None:
    needed = GENERATORS[kind]
    endless = open_source(kind, {"image_size": 64, "pictures_per_partition": 4, **needed})
    assert endless.is_endless
    far = next(itertools.islice(endless.partitions(), 100_000, None))
    assert far.locator == [400_000, 400_004]
    ending = open_source(kind, {"num_pictures": 10, "pictures_per_partition": 4, **needed})
    assert not ending.is_endless
    assert [p.num_samples for p in ending.partitions()] == [4, 4, 2]


@pytest.mark.parametrize("kind", GENERATORS)
def test_partition_read_alone_is_the_same(kind: str) -> None:
    params = {
        "image_size": 64, "pictures_per_partition": 3, "num_pictures": 12, **GENERATORS[kind]
    }  # fmt: skip
    in_order = first_pictures(open_source(kind, params), 12)
    source = open_source(kind, params)
    third = list(source.partitions())[2]
    assert list(source.read(third)) == in_order[6:9]


def test_squares_are_verified_absent() -> None:
    (sample,) = first_pictures(squares.Source(squares.Params(image_size=64)), 1)
    assert (sample.label, sample.label_state) == ("", "verified_absent")
    assert (sample.class_name, sample.stratum) == ("squares", "generated")
    assert sample.uri == "squares://0/0"


@pytest.mark.parametrize("name", SHEETS)
def test_contact_sheets_in_docs_are_current(name: str) -> None:
    shown = simplejpeg.decode_jpeg((DOCS / name).read_bytes(), colorspace="RGB").astype(int)
    assert (DOCS / name).stat().st_size < 400_000
    assert np.abs(shown - contact_sheet(SHEETS[name])).mean() < 12, f"draw docs/{name} again"


if __name__ == "__main__":
    for sheet, rows in SHEETS.items():
        (DOCS / sheet).write_bytes(
            simplejpeg.encode_jpeg(contact_sheet(rows), quality=85, colorsubsampling="420")
        )
