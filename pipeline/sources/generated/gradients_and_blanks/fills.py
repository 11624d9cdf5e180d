"""Ways to fill a picture without an object: kernels, each in place."""

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.drawing import State, compiled, next_word, to_byte
from pipeline.sources.generated import Pixels

Levels = NDArray[np.int32]

NUM_STEPS = 1024  # of a ramp; a power of two, so that a mask wraps it
LINEAR, RADIAL, ANGULAR = range(3)


@compiled
def add_grain(state: State, depth: int, is_grey: bool, pixels: Pixels) -> None:
    """Uniform noise of `depth` levels in all, per pixel or per channel."""
    num_levels, width = 3 * len(pixels), 3 if is_grey else 1
    noise = np.empty(num_levels + 8 * width, np.int16)
    for y in range(len(pixels)):
        for start in range(0, num_levels, 8 * width):
            word = next_word(state)
            for at in range(start, start + 8 * width, width):
                level = np.int16((np.int32(word & np.uint64(0xFF)) * depth >> 8) - depth // 2)
                word >>= np.uint64(8)
                for i in range(at, at + width):
                    noise[i] = level
        row = pixels[y].reshape(-1)
        for i in range(num_levels):  # a loop of its own, which is vectorized
            row[i] = min(max(np.int16(row[i]) + noise[i], np.int16(0)), np.int16(255))


@compiled
def fill_gradient(
    kind: int,
    shape: tuple[float, float, float],
    is_repeated: bool,
    is_mirrored: bool,
    steps: Pixels,
    pixels: Pixels,
) -> None:
    """Linear: shape is step right, step down, start. Else: centre and steps a pixel or a turn."""
    size = len(pixels)
    levels = np.empty(size, np.int32)
    for y in range(size):
        for x in range(size):
            if kind == LINEAR:
                level = shape[0] * x + shape[1] * y + shape[2]
            elif kind == RADIAL:
                across, down = x - shape[0], y - shape[1]
                level = np.sqrt(across * across + down * down) * shape[2]
            else:
                level = _part_of_turn(x + 0.5 - shape[0], y + 0.5 - shape[1]) * shape[2]
            levels[x] = np.int32(level)
        for x in range(size):
            step = levels[x]
            if is_mirrored:
                step = (step * 2) & (2 * NUM_STEPS - 1)
                step = min(step, 2 * NUM_STEPS - 1 - step)
            elif is_repeated:
                step &= NUM_STEPS - 1
            step = min(max(step, 0), NUM_STEPS - 1)
            for channel in range(3):
                pixels[y, x, channel] = steps[step, channel]


@compiled
def _part_of_turn(x: float, y: float) -> float:
    """Direction as [0, 1] of a circle, to 0.001, without an arctangent: machines differ in that."""
    t = min(abs(x), abs(y)) / max(abs(x), abs(y), 1e-9)
    eighth = t * (0.1547663 - 0.0305434 * t * t) if t < 1 else 0.125
    quarter = eighth if abs(x) >= abs(y) else 0.25 - eighth
    half = quarter if x >= 0 else 0.5 - quarter
    return half if y >= 0 else 1 - half


@compiled
def fill_mesh(corners: NDArray[np.int64], pixels: Pixels) -> None:
    """Between top left, top right, bottom left and bottom right, bilinear, in 1/65536 levels."""
    last = len(pixels) - 1
    for y in range(last + 1):
        for channel in range(3):
            left = corners[0, channel] * (last - y) + corners[2, channel] * y
            right = corners[1, channel] * (last - y) + corners[3, channel] * y
            level, step = left * 65536 // last + 32768, (right - left) * 65536 // (last * last)
            for x in range(last + 1):
                pixels[y, x, channel] = level >> 16
                level += step


@compiled
def fill_sum(rows: Levels, columns: Levels, pixels: Pixels) -> None:
    for y in range(len(rows)):
        for x in range(len(columns)):
            for channel in range(3):
                pixels[y, x, channel] = to_byte(rows[y, channel] + columns[x, channel])
