"""Blanks are blank, gradients run one way, and all of it is whole numbers."""

import hashlib

import numpy as np
import pytest

from pipeline.sources.drawing import ramp
from pipeline.sources.generated import Pixels, gradients_and_blanks, picture_rng
from pipeline.sources.generated.gradients_and_blanks.fills import (
    ANGULAR,
    LINEAR,
    NUM_STEPS,
    RADIAL,
    fill_gradient,
    fill_mesh,
)

GOLDEN = {
    "flat": "b5e58e5f48b34024",
    "near_black": "4edb042f51f2498d",
    "near_white": "55069fdc759abeae",
    "linear": "09bcb85f1625c449",
    "radial": "454e5311046844fa",
    "angular": "5fda1f30025de8ea",
    "mesh": "4389962649532fd0",
    "vignette": "12f80fc7e1b60a42",
    "banding": "84f84367d7e0b329",
    "bars": "0c3a4a4655eef773",
}
GREY = ramp(np.array([[0, 0, 0], [255, 255, 255]], np.uint8), NUM_STEPS)


def draw(family: str, index: int, size: int = 96) -> Pixels:
    params = gradients_and_blanks.Params(image_size=size)
    rng = picture_rng(f"gradients_and_blanks.{family}", 0, index)
    return gradients_and_blanks.draw(rng, params, family)


def gradient(kind: int, shape: tuple[float, float, float], size: int = 64) -> Pixels:
    pixels = np.empty((size, size, 3), np.uint8)
    fill_gradient(kind, shape, False, False, GREY, pixels)
    return pixels


@pytest.mark.parametrize("family", GOLDEN)
def test_pixels_are_the_same_on_any_machine(family: str) -> None:
    digest = hashlib.sha256(np.stack([draw(family, index) for index in range(8)])).hexdigest()
    assert digest[:16] == GOLDEN[family]


def test_a_linear_gradient_rises_steadily_from_end_to_end() -> None:
    levels = gradient(LINEAR, (10.0, 6.0, 0.0))[..., 0].astype(int)
    assert (np.diff(levels, axis=0) >= 0).all()
    assert (np.diff(levels, axis=1) >= 0).all()
    assert (levels[0, 0], levels[-1, -1]) == (0, (10 * 63 + 6 * 63) * 255 // 1023)


def test_a_radial_gradient_is_the_distance() -> None:
    levels = gradient(RADIAL, (20.0, 30.0, 10.0))[..., 0]
    y, x = np.mgrid[0:64, 0:64]
    wanted = np.minimum(np.hypot(x - 20, y - 30) * 10, 1023) * 255 / 1023
    assert np.abs(levels - wanted).max() <= 1


def test_an_angular_gradient_is_the_direction() -> None:
    levels = gradient(ANGULAR, (32.0, 32.0, NUM_STEPS))[..., 0]
    y, x = np.mgrid[0:64, 0:64] + 0.5 - 32
    wanted = np.arctan2(y, x) % (2 * np.pi) / (2 * np.pi) * 255
    assert np.abs(levels - wanted).max() <= 2


def test_a_mesh_meets_its_corners_and_is_straight_between() -> None:
    corners = np.array([[0, 10, 255], [255, 20, 0], [100, 30, 7], [0, 40, 255]])
    pixels = np.empty((65, 65, 3), np.uint8)
    fill_mesh(corners, pixels)
    shown = pixels[[0, 0, 64, 64], [0, 64, 0, 64]].astype(int)
    assert np.abs(shown - corners).max() <= 1
    assert np.abs(pixels[32, 32] - corners.mean(axis=0)).max() <= 1
    assert (np.diff(pixels[0, :, 0].astype(int)) >= 0).all()


def test_blanks_are_blank() -> None:
    for index in range(30):
        assert draw("flat", index).std(axis=(0, 1)).max() < 3
        assert draw("near_black", index).max() <= 25 + 20
        assert draw("near_white", index).min() >= 255 - 25 - 20
    assert any(draw("near_black", index).max() == 0 for index in range(30)), "black itself"
    assert any(draw("near_white", index).min() == 255 for index in range(30)), "white itself"


def test_a_vignette_is_darker_in_the_corners() -> None:
    for index in range(10):
        grey = draw("vignette", index, 128).mean(axis=2)
        corners = [grey[y : y + 16, x : x + 16].mean() for y in (0, 112) for x in (0, 112)]
        assert grey[56:72, 56:72].mean() > np.mean(corners)


def test_bars_are_few_colours_with_sharp_edges() -> None:
    num_colours = [len(np.unique(draw("bars", i).reshape(-1, 3), axis=0)) for i in range(20)]
    assert np.median(num_colours) < 40


def test_banding_is_a_number_to_each_line_and_column() -> None:
    residues = []
    for index in range(20):
        pixels = draw("banding", index).astype(float)
        lines = pixels.mean(axis=1, keepdims=True) + pixels.mean(axis=0, keepdims=True)
        residues.append(np.abs(pixels - lines + pixels.mean(axis=(0, 1))).mean())
    assert np.median(residues) < 4, "what is left is grain"
