"""Dead leaves: opaque shapes of all sizes, fallen over each other until no gap is left.

As in Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021
(https://arxiv.org/abs/2106.05963): after Lee, Mumford and Huang (IJCV 2001), radii follow r^-3, so
that a picture looks alike at every scale, as photographs do. Families are the paper's: disks,
squares, oriented (turned squares), polygons (disks, triangles to octagons) and textured (polygons,
each with a pattern of its own).

Arithmetic is of integers, and of floats that are added, multiplied, divided or rooted, which IEEE
754 fixes; the radii of a few large leaves go through an exponential, whose last bit is not.
"""

from functools import lru_cache, partial
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.drawing import Dice, State, compiled, next_below, next_unit
from pipeline.sources.generated import PictureParams, PictureSource, Pixels, all_families, toy_of
from pipeline.sources.generated.dead_leaves.falling import (
    ANY,
    DISK,
    NUM_DIRECTIONS,
    SQUARE,
    TURNED,
    Owners,
    directions,
    fall,
)  # fmt: skip

Family = Literal["disks", "squares", "oriented", "polygons", "textured"]

_TILE = 256
_SHAPES: dict[str, int] = {
    "disks": DISK,
    "squares": SQUARE,
    "oriented": TURNED,
    "polygons": ANY,
    "textured": ANY,
}


class Params(PictureParams, frozen=True, extra="forbid"):
    """Which leaves."""

    families: tuple[Family, ...] = all_families(Family)


def draw(rng: np.random.Generator, params: Params, family: str = "") -> Pixels:
    """uint8[image_size, image_size, 3] without a gap."""
    dice, size = Dice(rng), params.image_size
    family = family or dice.pick(params.families)
    radii = (dice.between(0.02, 0.06) * size, dice.between(0.1, 0.4) * size)
    owners = np.zeros((size, size), np.uint16)
    num_leaves = fall(dice.state(), _SHAPES[family], radii, directions(), owners)
    pixels = np.empty((size, size, 3), np.uint8)
    if family == "textured":
        _fill_textured(
            dice.state(), num_leaves, dice.palette(64), directions(), _tiles(), owners, pixels
        )
    else:
        _fill_flat(dice.palette(num_leaves + 1), owners, pixels)
    # Half of them blurred, as by a lens, without stairs at the contours.
    return np.asarray(cv2.GaussianBlur(pixels, (3, 3), 0)) if dice.chance(0.5) else pixels


Source = partial(PictureSource, "dead_leaves", draw)
toy = partial(toy_of, Params)


@compiled
def _fill_flat(colours: Pixels, owners: Owners, pixels: Pixels) -> None:
    """One colour per leaf."""
    size = len(pixels)
    for y in range(size):
        for x in range(size):
            owner = owners[y, x]
            for channel in range(3):
                pixels[y, x, channel] = colours[owner, channel]


@compiled
def _fill_textured(
    state: State,
    num_leaves: int,
    palette: Pixels,
    directions: NDArray[np.float64],
    tiles: NDArray[np.uint8],
    owners: Owners,
    pixels: Pixels,
) -> None:
    """A pattern per leaf: a tile in two colours, turned, scaled and shifted."""
    # Tile; steps across it to the right and down, and its start, in 1/65536.
    patterns = np.empty((num_leaves + 1, 5), np.int64)
    colours = np.empty((num_leaves + 1, 2, 3), np.int64)
    for leaf in range(num_leaves + 1):
        direction = next_below(state, NUM_DIRECTIONS)
        scale = 65536 * (0.3 + 3 * next_unit(state))
        patterns[leaf, 0] = next_below(state, len(tiles))
        for i in range(2):
            patterns[leaf, 1 + i] = int(scale * directions[direction, i])
            patterns[leaf, 3 + i] = next_below(state, 1 << 24)
            colours[leaf, i] = palette[next_below(state, len(palette))]
    for y in range(len(pixels)):
        owner = -1
        for x in range(len(pixels)):
            if owners[y, x] != owner:
                owner = owners[y, x]
                tile, right, down = patterns[owner, 0], patterns[owner, 1], patterns[owner, 2]
                u = patterns[owner, 3] + right * x + down * y
                v = patterns[owner, 4] - down * x + right * y
            level = np.int64(tiles[tile, (v >> 16) & (_TILE - 1), (u >> 16) & (_TILE - 1)])
            for channel in range(3):
                low, high = colours[owner, 0, channel], colours[owner, 1, channel]
                pixels[y, x, channel] = low + ((high - low) * level >> 8)
            u += right
            v -= down


@lru_cache(maxsize=1)
def _tiles() -> NDArray[np.uint8]:
    """Periodic patterns: slope, stripes, bands, checks, dots, clouds, speckle."""
    y, x = np.mgrid[0:_TILE, 0:_TILE]
    slope = np.minimum(2 * x, 2 * (_TILE - 1 - x))
    stripes = 255 * (x // 16 % 2)
    bands = 255 * (x % 64 < 10)
    checks = 255 * ((x // 32 + y // 32) % 2)
    dots = 255 * ((x % 32 - 16) ** 2 + (y % 32 - 16) ** 2 < 90)
    rng = np.random.Generator(np.random.Philox(key=0))
    octaves = [_clouds(Dice(rng), side) >> k for k, side in enumerate((64, 32, 16, 8))]
    clouds = np.sum(octaves, axis=0)
    clouds = (clouds - clouds.min()) * 255 // (clouds.max() - clouds.min())
    speckle = Dice(rng).bytes(_TILE * _TILE).reshape(_TILE, _TILE)
    return np.stack([slope, stripes, bands, checks, dots, clouds, speckle]).astype(np.uint8)


def _clouds(dice: Dice, side: int) -> NDArray[np.int64]:
    """Random levels, `side` pixels apart, and straight lines between them; in whole numbers."""
    count = _TILE // side
    levels = dice.bytes(count * count).reshape(count, count).astype(np.int64)
    for axis in (0, 1):
        after = np.roll(levels, -1, axis)
        steps = np.arange(side)
        levels = np.stack([levels * (side - step) + after * step for step in steps], axis + 1)
        shape = (_TILE, count) if axis == 0 else (_TILE, _TILE)
        levels = levels.reshape(shape) // side
    return levels
