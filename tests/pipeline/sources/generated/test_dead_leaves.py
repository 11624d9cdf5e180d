"""Dead leaves: the law of sizes, and that what is in front hides what is behind."""

import numpy as np
import pytest

from pipeline.sources.drawing import Dice
from pipeline.sources.generated import dead_leaves, picture_rng
from pipeline.sources.generated.dead_leaves.falling import (
    ANY,
    DISK,
    SQUARE,
    TURNED,
    Owners,
    directions,
    fall,
    next_radius,
)


def fallen(shape: int, radii: tuple[float, float], *, index: int = 0, size: int = 256) -> Owners:
    owners = np.zeros((size, size), np.uint16)
    fall(Dice(picture_rng("test", 0, index)).state(), shape, radii, directions(), owners)
    return owners


def test_radii_follow_the_inverse_cube() -> None:
    """Weighed by 1 / (area in which its centre may lie), as large leaves reach in from afar."""
    state = Dice(picture_rng("test", 0, 0)).state()
    radii = np.array([next_radius(state, 256, 2.0, 64.0) for _ in range(50_000)])
    assert radii.min() >= 2
    assert radii.max() <= 64
    weights = 1 / (256 + 2 * radii) ** 2
    for limit in (2.5, 4.0, 8.0, 16.0, 32.0):
        wanted = (limit**-2 - 64**-2) / (2**-2 - 64**-2)
        measured = weights[radii > limit].sum() / weights.sum()
        assert measured == pytest.approx(wanted, rel=5 * (wanted * len(radii)) ** -0.5)


@pytest.mark.parametrize("shape", [ANY, DISK, SQUARE, TURNED])
def test_hardly_any_ground_shows(shape: int) -> None:
    for index in range(5):
        owners = fallen(shape, (5.0, 60.0), index=index)
        assert (owners == 0).mean() < 0.15
        assert len(np.unique(owners)) > 100


def test_later_leaves_are_hidden_as_a_fall_without_beginning_hides_them() -> None:
    """Leaf k shows where none of the k before it lies: a share of (1 - p)^k of it in the mean."""
    radius, size, num_pictures = 12.0, 256, 60
    visible = np.zeros(400)
    for index in range(num_pictures):
        owners = fallen(DISK, (radius, radius + 1e-3), index=index, size=size)
        visible += np.bincount(owners.ravel(), minlength=401)[1:401]
    hit = np.pi * radius**2 / (size + 2 * radius) ** 2  # that a leaf covers a point
    shown = visible / num_pictures / (hit * size**2)
    for k in (0, 100, 200, 300):
        wanted = (1 - hit) ** np.arange(k, k + 100)
        assert shown[k : k + 100].mean() == pytest.approx(wanted.mean(), rel=0.05)


def test_disks_are_round_and_squares_square() -> None:
    for shape, share in ((DISK, np.pi / 4), (SQUARE, 1.0)):
        rows, columns = np.nonzero(fallen(shape, (40.0, 40.001), index=3, size=400) == 1)
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert len(rows) / box == pytest.approx(share, abs=0.02)


def test_no_scale_is_preferred() -> None:
    """Of an image that looks alike at all scales, halving keeps the contrast (Ruderman 1994)."""
    params = dead_leaves.Params(image_size=256)
    ratios = []
    for index in range(20):
        grey = dead_leaves.draw(picture_rng("dead_leaves.disks", 0, index), params, "disks")
        grey = grey.mean(axis=2)
        half = grey.reshape(128, 2, 128, 2).mean(axis=(1, 3))
        ratios.append(np.abs(np.diff(half)).mean() / np.abs(np.diff(grey)).mean())
    assert 1.3 < np.mean(ratios) < 2.1, "white noise halves to 0.5, a smooth slope to 2"


def test_patterns_fill_leaves_and_not_the_gaps_between() -> None:
    params = dead_leaves.Params(image_size=128)
    flat, textured = (
        dead_leaves.draw(picture_rng("test", 0, 0), params, family)
        for family in ("polygons", "textured")
    )
    colours = [len(np.unique(pixels.reshape(-1, 3), axis=0)) for pixels in (flat, textured)]
    assert colours[1] > 2 * colours[0]
