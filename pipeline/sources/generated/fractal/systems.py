"""Random systems of maps of the plane, and the rule for which are drawn."""

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.drawing import State, compiled, next_below, next_unit, next_word

Maps = NDArray[np.float64]  # rows of a, b, c, d, e, f: x' = a x + b y + e, y' = c x + d y + f
Choice = NDArray[np.uint8]  # 256 numbers of maps, each as often as it is taken
Box = tuple[float, float, float, float]  # left, top, width, height

AFFINE, SINGULAR, SYMMETRIC, FLAME = range(4)
PLAIN, SPHERE, HORSESHOE, BUBBLE, FISHEYE = range(5)  # what follows the affine map
MIN_FILLING = 0.2
_RASTER = 32
_NUM_TRIAL_POINTS = 2048
_NUM_TRIALS = 24
_MAX_MAPS = 24


@compiled
def find_system(state: State, family: int) -> tuple[Maps, Choice, int, Box, float]:
    """Maps, how often each is taken, what follows them, where their attractor lies, its filling.

    The filling is the share of cells of a 32 x 32 raster over the attractor that 2,048 points
    reach. The first system with MIN_FILLING is taken; after 24, the fullest of them.
    """
    best = (np.zeros((1, 6)), np.zeros(256, np.uint8), 0, (0.0, 0.0, 1.0, 1.0), -1.0)
    for _ in range(_NUM_TRIALS):
        maps, follow = _draw_maps(state, family), PLAIN
        if family == FLAME:
            follow = 1 + next_below(state, 4)
        choice = _weigh(maps)
        box, filling = measure_filling(state, maps, choice, follow)
        if filling > best[4]:
            best = (maps, choice, follow, box, filling)
        if filling >= MIN_FILLING:
            break
    return best


@compiled
def move(maps: Maps, k: int, follow: int, x: float, y: float) -> tuple[float, float]:
    """One step by map k. Variations as numbered by Draves and Reckase: 2, 4, 28 and 16."""
    u = maps[k, 0] * x + maps[k, 1] * y + maps[k, 4]
    v = maps[k, 2] * x + maps[k, 3] * y + maps[k, 5]
    if follow == PLAIN:
        return u, v
    square = u * u + v * v + 1e-6
    if follow == SPHERE:
        return u / square, v / square
    if follow == HORSESHOE:
        r = np.sqrt(square)
        return (u - v) * (u + v) / r, 2 * u * v / r
    if follow == BUBBLE:
        return 4 * u / (square + 4), 4 * v / (square + 4)
    r = np.sqrt(square)
    return 2 * v / (r + 1), 2 * u / (r + 1)


@compiled
def visit(state: State, maps: Maps, choice: Choice, follow: int) -> tuple[float, float]:
    """A point of the attractor, or next to it: where an orbit is after 64 steps."""
    x, y = next_unit(state), next_unit(state)
    for _ in range(64):
        x, y = move(maps, choice[next_word(state) >> np.uint64(56)], follow, x, y)
    return x, y


@compiled
def measure_filling(state: State, maps: Maps, choice: Choice, follow: int) -> tuple[Box, float]:
    """The box of a short orbit, and how much of it is filled; -1 if it makes no picture."""
    points = np.empty((_NUM_TRIAL_POINTS, 2))
    x, y = next_unit(state), next_unit(state)
    for i in range(-32, _NUM_TRIAL_POINTS):
        x, y = move(maps, choice[next_word(state) >> np.uint64(56)], follow, x, y)
        if i >= 0:
            points[i, 0], points[i, 1] = x, y
    left, top = points[:, 0].min(), points[:, 1].min()
    width, height = points[:, 0].max() - left, points[:, 1].max() - top
    if not (1e-3 < width < 1e3 and 1e-3 < height < 1e3):  # also false for nan
        return (0.0, 0.0, 1.0, 1.0), -1.0
    cells = np.zeros((_RASTER, _RASTER), np.uint8)
    for i in range(_NUM_TRIAL_POINTS):
        column = min(int((points[i, 0] - left) / width * _RASTER), _RASTER - 1)
        row = min(int((points[i, 1] - top) / height * _RASTER), _RASTER - 1)
        cells[row, column] = 1
    return (left, top, width, height), cells.sum() / (_RASTER * _RASTER)


@compiled
def _draw_maps(state: State, family: int) -> Maps:
    maps = np.empty((_MAX_MAPS, 6))
    if family in (AFFINE, FLAME):
        num_maps = 2 + next_below(state, 7 if family == AFFINE else 3)
        _draw_affine(state, maps[:num_maps])
    elif family == SINGULAR:
        num_maps = 2 + next_below(state, 6)
        _draw_singular(state, maps[:num_maps])
    else:
        order, num_maps = 2 + next_below(state, 6), 1 + next_below(state, 3)
        _draw_singular(state, maps[: num_maps + 1])  # the sum of one more: fuller
        _turn(maps, num_maps, order)
        num_maps *= order
    return maps[:num_maps].copy()


@compiled
def _draw_affine(state: State, maps: Maps) -> None:
    """FractalDB's: uniform in [-1, 1], and shrunk until the map contracts."""
    for k in range(len(maps)):
        for i in range(6):
            maps[k, i] = 2 * next_unit(state) - 1
        limit = 0.6 + 0.35 * next_unit(state)
        norm = largest_singular_value(maps[k])
        if norm > limit:
            for i in range(4):
                maps[k, i] *= limit / norm


@compiled
def largest_singular_value(coefficients: NDArray[np.float64]) -> float:
    """Of the linear part; under 1 it contracts."""
    a, b, c, d = coefficients[0], coefficients[1], coefficients[2], coefficients[3]
    total = a * a + b * b + c * c + d * d
    spread = np.sqrt((a * a + b * b - c * c - d * d) ** 2 + 4 * (a * c + b * d) ** 2)
    return float(np.sqrt((total + spread) / 2))


@compiled
def _draw_singular(state: State, maps: Maps) -> None:
    """Anderson and Farrell's: first plus twice second singular values sum to (5.5 + n) / 2.

    For sums from (5 + n) / 2 to (6 + n) / 2 their attractors are neither dust nor a blot.
    """
    left = 0.5 * (5 + len(maps) + next_unit(state))
    for k in range(len(maps)):
        others = 3.0 * (len(maps) - k - 1)  # the most that those to come can take
        low, high = max(0.0, (left - others) / 3), min(1.0, left)
        first = low + (high - low) * next_unit(state)
        low, high = max(0.0, (left - first - others) / 2), min(first, (left - first) / 2)
        second = low + (max(high, low) - low) * next_unit(state)
        left -= first + 2 * second
        before, after = 2 * np.pi * next_unit(state), 2 * np.pi * next_unit(state)
        sign = 1.0 if next_below(state, 2) else -1.0
        c0, s0, c1, s1 = np.cos(before), np.sin(before), np.cos(after), np.sin(after)
        first, second = min(first, 0.97), min(second, 0.97)
        maps[k, 0] = c1 * first * c0 - s1 * second * s0 * sign
        maps[k, 1] = -c1 * first * s0 - s1 * second * c0 * sign
        maps[k, 2] = s1 * first * c0 + c1 * second * s0 * sign
        maps[k, 3] = -s1 * first * s0 + c1 * second * c0 * sign
        maps[k, 4], maps[k, 5] = 2 * next_unit(state) - 1, 2 * next_unit(state) - 1


@compiled
def _turn(maps: Maps, num_maps: int, order: int) -> None:
    """Adds each map turned by every part of the circle: the attractor has that symmetry."""
    for part in range(1, order):
        cosine, sine = np.cos(2 * np.pi * part / order), np.sin(2 * np.pi * part / order)
        for k in range(num_maps):
            turned = part * num_maps + k
            for i, j in ((0, 2), (1, 3), (4, 5)):
                maps[turned, i] = cosine * maps[k, i] - sine * maps[k, j]
                maps[turned, j] = sine * maps[k, i] + cosine * maps[k, j]


@compiled
def _weigh(maps: Maps) -> Choice:
    """Chooses each map in proportion to the area it keeps, at least rarely; of 256 choices."""
    areas = np.empty(len(maps))
    for k in range(len(maps)):
        areas[k] = max(abs(maps[k, 0] * maps[k, 3] - maps[k, 1] * maps[k, 2]), 0.02)
    choice = np.empty(256, np.uint8)
    k, until = 0, areas[0]
    for i in range(256):
        while (i + 0.5) / 256 * areas.sum() > until and k < len(maps) - 1:
            k += 1
            until += areas[k]
        choice[i] = k
    return choice
