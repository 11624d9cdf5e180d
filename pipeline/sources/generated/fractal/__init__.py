"""Fractals: attractors of random systems of maps, drawn by the chaos game.

As in FractalDB (Kataoka et al., "Pre-training without Natural Images", ACCV 2020,
https://arxiv.org/abs/2101.08515): a point is moved on and on by one of a few affine maps, each
taken with a probability in proportion to its determinant, and a system whose attractor fills too
little of the picture is drawn again. In colour and on a ground, as Anderson and Farrell do
("Improving Fractal Pre-training", WACV 2022, https://arxiv.org/abs/2110.03091).

    affine     2 to 8 maps with coefficients uniform in [-1, 1]: FractalDB's
    singular   2 to 7 maps by their singular values and rotations: Anderson and Farrell's
    symmetric  such maps, turned by each of 2 to 7 parts of the circle: rosettes, snowflakes
    flame      affine maps, each followed by one that is not linear (Draves and Reckase, "The
               Fractal Flame Algorithm", 2003): sphere, horseshoe, bubble or fisheye

Floats are strict and in a fixed order, but for sines and cosines, whose last bit may differ between
machines. Maps that contract forget it; a flame need not, so that its bytes are the same on like
machines only.
"""

from functools import partial
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.drawing import Dice, State, compiled, next_unit, next_word, ramp
from pipeline.sources.generated import PictureParams, PictureSource, Pixels, all_families, toy_of
from pipeline.sources.generated.fractal.systems import (
    AFFINE,
    FLAME,
    SINGULAR,
    SYMMETRIC,
    Box,
    Choice,
    Maps,
    find_system,
    move,
    visit,
)  # fmt: skip

Plane = NDArray[np.uint8]
Family = Literal["affine", "singular", "symmetric", "flame"]

_FAMILIES = {"affine": AFFINE, "singular": SINGULAR, "symmetric": SYMMETRIC, "flame": FLAME}
_POINTS_PER_PIXEL = 0.7  # FractalDB: 100,000 on 362 x 362
_NUM_CHAINS = 8  # orbits side by side: a step waits for the one before, other orbits do not


class Params(PictureParams, frozen=True, extra="forbid"):
    """Which fractals."""

    families: tuple[Family, ...] = all_families(Family)


def draw(rng: np.random.Generator, params: Params, family: str = "") -> Pixels:
    """uint8[image_size, image_size, 3]: an attractor, whole or a part of it, on a ground."""
    dice, size = Dice(rng), params.image_size
    state, family = dice.state(), family or dice.pick(params.families)
    maps, choice, follow, box, _ = find_system(state, _FAMILIES[family])
    hits, shades = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    num_steps = int(_POINTS_PER_PIXEL * size * size) // _NUM_CHAINS
    view = _view(dice, box, visit(state, maps, choice, follow))
    _play(state, maps, choice, follow, view, num_steps, hits, shades)
    if dice.chance(0.3):  # FractalDB's patches, instead of points
        patch = np.ones((3, 3), np.uint8)
        hits, shades = (np.asarray(cv2.dilate(p, patch), np.uint8) for p in (hits, shades))
    colours, grounds = dice.palette(dice.whole(2, 5), is_vivid=True), dice.palette(2)
    tone = dice.below(3)  # light on dark, dark on light, or as it comes
    if tone == 0:
        colours, grounds = 255 - (255 - colours) // 2, grounds // 5
    elif tone == 1:
        colours, grounds = colours // 5 * 3, 255 - (255 - grounds) // 5
    pixels = np.empty((size, size, 3), np.uint8)
    _colour(hits, shades, ramp(colours), ramp(grounds, size), dice.pick((0, 1, 4)), pixels)
    return pixels


Source = partial(PictureSource, "fractal", draw)
toy = partial(toy_of, Params)


def _view(dice: Dice, box: Box, point: tuple[float, float]) -> Box:
    """The attractor with a margin, or a part of it around one of its points."""
    left, top, width, height = box
    x, y, zoom = left + width / 2, top + height / 2, dice.between(0.8, 0.95)
    if dice.chance(0.4):
        (x, y), zoom = point, dice.between(1.2, 3.0)
    return x - width / zoom / 2, y - height / zoom / 2, width / zoom, height / zoom


@compiled
def _play(
    state: State,
    maps: Maps,
    choice: Choice,
    follow: int,
    view: Box,
    num_steps: int,
    hits: Plane,
    shades: Plane,
) -> None:
    """The chaos game: counts visits to each pixel, up to 255, and keeps the shade of their maps.

    A shade is half the one before and half the colour of the map (Draves and Reckase).
    """
    size, last = len(hits), max(len(maps) - 1, 1)
    left, top, across, down = view[0], view[1], size / view[2], size / view[3]
    x, y = np.empty(_NUM_CHAINS), np.empty(_NUM_CHAINS)
    taken, shade = np.empty(_NUM_CHAINS, np.int32), np.full(_NUM_CHAINS, 128, np.int32)
    for chain in range(_NUM_CHAINS):
        x[chain], y[chain] = next_unit(state), next_unit(state)
    for step in range(-32, num_steps):
        word = next_word(state)
        for chain in range(_NUM_CHAINS):
            taken[chain] = choice[(word >> np.uint64(8 * chain)) & np.uint64(255)]
        for chain in range(_NUM_CHAINS):
            x[chain], y[chain] = move(maps, taken[chain], follow, x[chain], y[chain])
        for chain in range(_NUM_CHAINS):
            shade[chain] = (shade[chain] + taken[chain] * 255 // last) >> 1
            column, row = (x[chain] - left) * across, (y[chain] - top) * down
            if step >= 0 and 0 <= column < size and 0 <= row < size:
                at = int(row), int(column)
                hits[at] = min(hits[at] + 1, 255)
                shades[at] = shade[chain]


@compiled
def _colour(
    hits: Plane, shades: Plane, colours: Pixels, grounds: Pixels, softness: int, pixels: Pixels
) -> None:
    """Covers the ground by hits / (hits + softness)."""
    cover = np.empty(256, np.int32)
    for hit in range(256):
        cover[hit] = 256 * hit // max(hit + softness, 1)
    size = len(pixels)
    for y in range(size):
        for x in range(size):
            share, shade = cover[hits[y, x]], shades[y, x]
            for channel in range(3):
                ground = np.int32(grounds[y, channel])
                across = np.int32(colours[shade, channel]) - ground
                pixels[y, x, channel] = ground + (across * share >> 8)
