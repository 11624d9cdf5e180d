"""Pictures without an object: blanks, gradients, banding, test charts.

A network is often most confident about such pictures: Nguyen et al., "Deep Neural Networks are
Easily Fooled", CVPR 2015 (https://arxiv.org/abs/1412.1897); so a negative set needs them.

    flat        one colour, any
    near_black  a lens cap: next to black, with or without the noise of a sensor
    near_white  overexposed, or a blank page: next to white
    linear      two to five colours along a line, once or again and again
    radial      the same around a point
    angular     the same by direction from a point; with two colours, a Siemens star
    mesh        the colours of four corners, blended
    vignette    one colour, darker towards the corners, as a lens has it
    banding     lines and columns of a sensor, or the bars of a flickering lamp
    bars        colour bars, grey steps, stripes of all widths, checks: test charts

Arithmetic is of integers, and of floats that are added, multiplied, divided and rooted, which IEEE
754 fixes: the pixels are the same on any machine.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import cv2
import numpy as np

from pipeline.sources.drawing import Dice, ramp
from pipeline.sources.generated import (
    PictureParams,
    PictureSource,
    Pixels,
    all_families,
    draw_family,
    toy_of,
)
from pipeline.sources.generated.gradients_and_blanks.fills import (
    ANGULAR,
    LINEAR,
    NUM_STEPS,
    RADIAL,
    add_grain,
    fill_gradient,
    fill_mesh,
    fill_sum,
)  # fmt: skip

Family = Literal[
    "flat", "near_black", "near_white", "linear", "radial", "angular", "mesh", "vignette",
    "banding", "bars",
]  # fmt: skip

_BROADCAST = np.array(  # white, yellow, cyan, green, magenta, red, blue at 75 % (ITU-R BT.471)
    [[191, 191, 191], [191, 191, 0], [0, 191, 191], [0, 191, 0], [191, 0, 191], [191, 0, 0],
     [0, 0, 191]], np.uint8,
)  # fmt: skip


class Params(PictureParams, frozen=True, extra="forbid"):
    """Which blanks."""

    families: tuple[Family, ...] = all_families(Family)


def draw(rng: np.random.Generator, params: Params, family: str = "") -> Pixels:
    """uint8[image_size, image_size, 3] of nothing in particular."""
    return draw_family(_FAMILIES, rng, params, family)


Source = partial(PictureSource, "gradients_and_blanks", draw)
toy = partial(toy_of, Params)


def _draw_flat(rng: np.random.Generator, size: int) -> Pixels:
    dice = Dice(rng)
    pixels = np.empty((size, size, 3), np.uint8)
    pixels[0] = dice.palette(1)[0]
    pixels[1:] = pixels[0]  # whole rows are copied at once, three bytes are not
    return _grained(dice, pixels, dice.pick((0, 0, 0, 2, 8)))


def _draw_near(rng: np.random.Generator, size: int, *, is_white: bool) -> Pixels:
    """Up to 24 levels from the end of the scale: all over, or differently in every corner."""
    dice = Dice(rng)
    reach = dice.pick((1, 4, 25, 25))  # 1: the end itself
    corners = np.array([[dice.below(reach) for _ in "rgb"] for _ in range(4)])
    if dice.chance(0.6):
        corners[1:] = corners[0]
    pixels = np.empty((size, size, 3), np.uint8)
    fill_mesh(255 - corners if is_white else corners, pixels)
    return _grained(dice, pixels, dice.pick((0, 2, 2, 6, 16, 40)))


def _draw_gradient(rng: np.random.Generator, size: int, *, kind: int) -> Pixels:
    dice = Dice(rng)
    is_hard = dice.chance(0.3)  # two colours side by side: stripes, rings, a Siemens star
    turns = dice.pick((1, 1, 1, 2, 3, 8, 20)) if not is_hard else dice.whole(2, 24)
    colours = dice.palette(2 if is_hard else dice.whole(2, 5), is_vivid=dice.chance(0.5))
    steps = colours.repeat(NUM_STEPS // 2, axis=0) if is_hard else ramp(colours, NUM_STEPS)
    # Repeated ramps run back and forth, so that no seam shows; so do angles.
    is_mirrored = not is_hard and (turns > 1 or kind == ANGULAR)
    if kind == LINEAR:
        across, down = dice.between(-1, 1), dice.between(-1, 1)
        scale = turns * NUM_STEPS / (size * max(abs(across) + abs(down), 0.1))
        shape = (across * scale, down * scale, -min(across, 0) * scale * size)
        shape = (shape[0], shape[1], shape[2] - min(down, 0) * scale * size)
    else:
        x, y = (dice.between(-0.2, 1.2) * size for _ in "xy")
        reach = size * dice.between(0.4, 1.2) if kind == RADIAL else 1.0
        shape = (x, y, turns * NUM_STEPS / reach)
    pixels = np.empty((size, size, 3), np.uint8)
    fill_gradient(kind, shape, is_hard or turns > 1, is_mirrored, steps, pixels)
    return _grained(dice, pixels, dice.pick((0, 0, 2, 6)))


def _draw_mesh(rng: np.random.Generator, size: int) -> Pixels:
    dice = Dice(rng)
    pixels = np.empty((size, size, 3), np.uint8)
    fill_mesh(dice.palette(4).astype(np.int64), pixels)
    return _grained(dice, pixels, dice.pick((0, 0, 2, 6)))


def _draw_vignette(rng: np.random.Generator, size: int) -> Pixels:
    """Brightness falls with the square of the distance from near the middle."""
    dice = Dice(rng)
    colour, depth = dice.palette(1)[0].astype(np.int64), dice.whole(40, 256)
    fall = np.arange(NUM_STEPS) ** 2 * depth // NUM_STEPS**2  # of 256
    steps = (np.maximum(colour, 40) * (256 - fall[:, None]) // 256).astype(np.uint8)
    x, y = (dice.between(0.4, 0.6) * size for _ in "xy")
    pixels = np.empty((size, size, 3), np.uint8)
    fill_gradient(RADIAL, (x, y, NUM_STEPS / (0.75 * size)), False, False, steps, pixels)
    return _grained(dice, pixels, dice.pick((0, 2, 6, 16)))


def _draw_banding(rng: np.random.Generator, size: int) -> Pixels:
    """A colour, plus an offset per line and per column."""
    dice = Dice(rng)
    rows = dice.palette(1).astype(np.int32).repeat(size, axis=0)
    columns = np.zeros((size, 3), np.int32)
    if dice.chance(0.5):
        period, depth = dice.whole(8, size), dice.whole(10, 90)
        wave = np.abs(
            np.arange(size, dtype=np.int32) * 4 % (4 * period) - 2 * period
        )  # a triangle: no sine
        rows += (wave * depth // period - depth)[:, None]
    for lines in (rows, columns):
        depth = dice.pick((0, 6, 20, 60))
        channels = dice.pick((1, 1, 3))
        noise = dice.bytes(size * channels).reshape(size, channels).astype(np.int32)
        lines += (noise - 128) * depth >> 8
    pixels = np.empty((size, size, 3), np.uint8)
    fill_sum(rows, columns, pixels)
    pixels = _grained(dice, pixels, dice.pick((0, 2, 6, 16)))
    return np.asarray(cv2.transpose(pixels), np.uint8) if dice.chance(0.5) else pixels


def _draw_bars(rng: np.random.Generator, size: int) -> Pixels:
    """A row of colours stretched over the picture, or several such rows one below the other."""
    dice = Dice(rng)
    strips = []
    for _ in range(dice.pick((1, 1, 2, 3, 5))):
        kind = dice.below(5)
        if kind == 0:
            colours = _BROADCAST if dice.chance(0.5) else dice.palette(dice.whole(2, 12))
        elif kind == 1:
            colours = ramp(np.array([[0] * 3, [255] * 3], np.uint8), dice.whole(3, 24))
        elif kind == 2:  # narrower and narrower, as on charts of resolution
            widths = [width for width in (16, 12, 8, 6, 4, 3, 2, 1) for _ in range(4)]
            colours = dice.palette(2)[np.repeat(np.arange(32) % 2, widths)]
        elif kind == 3:
            colours = dice.palette(2)[np.arange(dice.whole(2, 64)) % 2]
        else:
            colours = ramp(dice.palette(2), size)
        strips.append(colours[np.arange(size) * len(colours) // size])
    if len(strips) == 1 and dice.chance(0.4):  # checks: every other row the other way round
        strips = [strips[0], strips[0][::-1]] * dice.whole(1, 16)
    rows = np.arange(size) * len(strips) // size
    pixels = np.stack(strips)[rows]
    return pixels if dice.chance(0.5) else np.asarray(cv2.transpose(pixels), np.uint8)


def _grained(dice: Dice, pixels: Pixels, depth: int) -> Pixels:
    """Adds uniform noise of up to `depth` levels in all, in place."""
    if depth:
        add_grain(dice.state(), depth, dice.chance(0.5), pixels)
    return pixels


_FAMILIES: dict[str, Callable[[np.random.Generator, int], Pixels]] = {
    "flat": _draw_flat,
    "near_black": partial(_draw_near, is_white=False),
    "near_white": partial(_draw_near, is_white=True),
    "linear": partial(_draw_gradient, kind=LINEAR),
    "radial": partial(_draw_gradient, kind=RADIAL),
    "angular": partial(_draw_gradient, kind=ANGULAR),
    "mesh": _draw_mesh,
    "vignette": _draw_vignette,
    "banding": _draw_banding,
    "bars": _draw_bars,
}
