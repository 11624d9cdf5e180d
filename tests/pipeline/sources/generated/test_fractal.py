"""Fractals: maps contract, attractors fill the picture, and families are what they are called."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.sources.drawing import Dice
from pipeline.sources.generated import fractal, picture_rng
from pipeline.sources.generated.fractal.systems import (
    AFFINE,
    FLAME,
    MIN_FILLING,
    PLAIN,
    SINGULAR,
    SYMMETRIC,
    find_system,
    largest_singular_value,
    measure_filling,
    move,
)

NUM_SYSTEMS = 100


def systems(family: int, number: int = NUM_SYSTEMS) -> list[tuple]:  # type: ignore[type-arg]
    return [
        find_system(Dice(picture_rng("test", family, index)).state(), family)
        for index in range(number)
    ]


@pytest.mark.parametrize("family", [AFFINE, SINGULAR, SYMMETRIC])
def test_all_maps_contract(family: int) -> None:
    for maps, _, follow, _, _ in systems(family):
        assert follow == PLAIN
        assert 2 <= len(maps) <= 24
        for row in maps:
            norm = np.linalg.norm(row[:4].reshape(2, 2), 2)
            assert norm < 1
            assert largest_singular_value(row) == pytest.approx(norm)


@pytest.mark.parametrize("family", [AFFINE, SINGULAR, SYMMETRIC, FLAME])
def test_attractors_fill_enough_of_the_picture(family: int) -> None:
    fillings = np.array([system[4] for system in systems(family)])
    assert (fillings >= MIN_FILLING).mean() >= 0.99, "24 trials hardly ever end without success"
    # Another orbit of the same system agrees on what it fills.
    for maps, choice, follow, _, filling in systems(family, 20):
        state = Dice(picture_rng("other", 0, 0)).state()
        again = measure_filling(state, maps, choice, follow)[1]
        assert again == pytest.approx(filling, abs=0.08)


def test_a_system_that_fills_little_is_refused() -> None:
    line = np.array([[0.5, 0, 0, 0.5, 0, 0], [0.5, 0, 0, 0.5, 0.5, 0.5]])
    choice = np.repeat(np.arange(2), 128).astype(np.uint8)
    state = Dice(picture_rng("test", 0, 0)).state()
    assert measure_filling(state, line, choice, PLAIN)[1] < 0.05
    point = np.array([[0.5, 0, 0, 0.5, 0, 0]])
    assert measure_filling(state, point, choice * 0, PLAIN)[1] == -1
    growing = np.array([[2.0, 0, 0, 2.0, 1, 1]])
    assert measure_filling(state, growing, choice * 0, PLAIN)[1] == -1


def test_maps_are_taken_as_often_as_they_keep_area() -> None:
    for maps, choice, _, _, _ in systems(AFFINE, 20):
        areas = np.maximum(np.abs([np.linalg.det(row[:4].reshape(2, 2)) for row in maps]), 0.02)
        shares = np.bincount(choice, minlength=len(maps)) / 256
        assert np.abs(shares - areas / areas.sum()).max() <= 1.01 / 256


def test_singular_values_keep_to_the_sum_that_makes_good_geometry() -> None:
    for maps, _, _, _, _ in systems(SINGULAR, 50):
        values = [np.linalg.svd(row[:4].reshape(2, 2), compute_uv=False) for row in maps]
        total = sum(first + 2 * second for first, second in values)
        # Values of 1 are cut to 0.97.
        assert 0.5 * (5 + len(maps)) - 0.1 * len(maps) < total < 0.5 * (6 + len(maps)) + 1e-9


def test_symmetric_attractors_are_symmetric() -> None:
    for maps, choice, _, _, _ in systems(SYMMETRIC, 10):
        points = orbit(maps, choice, 20_000)
        orders = [
            order for order in range(2, 8)
            if len(maps) % order == 0 and overlap(points, turned(points, 2 * np.pi / order)) > 0.75
        ]  # fmt: skip
        assert orders, "turned by a part of the circle, it covers itself"


def orbit(maps: NDArray[np.float64], choice: NDArray[np.uint8], number: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    points, x, y = np.empty((number, 2)), 0.0, 0.0
    for i in range(-32, number):
        x, y = move(maps, choice[rng.integers(256)], PLAIN, x, y)
        if i >= 0:
            points[i] = x, y
    return points


def turned(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of the cells with many points of a, the share that has points of b."""
    reach = np.abs(a).max()
    cells = [
        np.histogram2d(*points.T, bins=24, range=[[-reach, reach]] * 2)[0] for points in (a, b)
    ]
    dense = cells[0] >= 8
    return float((cells[1][dense] > 0).mean())


def test_pictures_show_the_attractor_and_the_ground() -> None:
    params = fractal.Params(image_size=128)
    for family in params.families:
        spread = [
            fractal.draw(picture_rng(f"fractal.{family}", 0, i), params, family).std()
            for i in range(10)
        ]
        assert np.median(spread) > 15
