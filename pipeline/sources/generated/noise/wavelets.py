"""Fields whose wavelet coefficients are independent and heavy-tailed, as those of photographs are.

The paper matches such marginals in a steerable pyramid, step by step; in a transform whose
coefficients are free, drawing them is enough.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.drawing import State, compiled, next_word

Plane = NDArray[np.float32]

_NUM_LEVELS = 5


def wavelet_noise(state: State, size: int, *, tail: float, decay: float, is_smooth: bool) -> Plane:
    """float32[size, size] or a little more, of variance about 1.

    Marginals are exp(-|x|^tail); details shrink by `decay` a level. Smooth is the 5/3 transform
    (LeGall and Tabatabai 1988), else it is Haar's.
    """
    side = -(-size // 2**_NUM_LEVELS) * 2**_NUM_LEVELS
    field = np.empty((side, side), np.float32)
    _fill_wavelet(state, _quantiles(tail), np.float32(decay), is_smooth, field)
    return field


@lru_cache(maxsize=8)
def _quantiles(tail: float) -> Plane:
    """Quantiles of the density exp(-|x|^tail), scaled to variance 1, at 4096 even steps."""
    x = np.linspace(0, (3 * np.log(10)) ** (1 / tail) * 1.5, 200_000)
    mass = np.cumsum(np.exp(-(x**tail)))
    positive = np.interp((np.arange(2048) + 0.5) / 2048, mass / mass[-1], x)
    table = np.concatenate([-positive[::-1], positive])
    return np.asarray(table / table.std(), np.float32)


@compiled
def _fill_wavelet(
    state: State, quantiles: Plane, decay: np.float32, is_smooth: bool, field: Plane
) -> None:
    """Coefficients by their marginals, then the inverse transform, coarse to fine.

    Lifting: even samples hold the coarser level, odd ones the details (5/3: LeGall and Tabatabai
    1988; Haar). Details shrink by `decay` a level. Samples stay in place: those of a level are
    the ones at multiples of its stride.
    """
    size = len(field)
    stride = 1 << _NUM_LEVELS
    for y in range(0, size, stride):
        for x in range(0, size, stride):
            field[y, x] = quantiles[next_word(state) >> np.uint64(52)]
    scale = np.float32(1)
    while stride > 1:
        half = stride // 2
        scale *= decay
        for y in range(0, size, half):
            is_coarse_row = y % stride == 0
            start, step = (half, stride) if is_coarse_row else (0, half)
            for x in range(start, size, 4 * step):
                word = next_word(state)
                for at in range(x, min(x + 4 * step, size), step):
                    field[y, at] = scale * quantiles[word & np.uint64(4095)]
                    word >>= np.uint64(16)
        _lift_rows(field, half, is_smooth)
        _lift_columns(field, half, is_smooth)
        stride = half


@compiled
def _lift_rows(field: Plane, half: int, is_smooth: bool) -> None:
    size, quarter, middle = len(field), np.float32(0.25), np.float32(0.5)
    for y in range(0, size, half):
        row = field[y]
        before = row[size - half]
        for x in range(0, size, 2 * half):
            after = row[x + half]
            row[x] -= quarter * (before + after) if is_smooth else middle * after
            before = after
        for x in range(0, size - 2 * half, 2 * half):
            row[x + half] += middle * (row[x] + row[x + 2 * half]) if is_smooth else row[x]
        row[size - half] += (
            middle * (row[size - 2 * half] + row[0]) if is_smooth else row[size - 2 * half]
        )


@compiled
def _lift_columns(field: Plane, half: int, is_smooth: bool) -> None:
    """Like rows, but a whole row at a time: neighbours in memory."""
    size, quarter, middle = len(field), np.float32(0.25), np.float32(0.5)
    for y in range(0, size, 2 * half):
        even, after, before = field[y], field[y + half], field[y - half]
        if is_smooth:
            for x in range(0, size, half):
                even[x] -= quarter * (before[x] + after[x])
        else:
            for x in range(0, size, half):
                even[x] -= middle * after[x]
    for y in range(0, size, 2 * half):
        even, odd, following = field[y], field[y + half], field[(y + 2 * half) % size]
        if is_smooth:
            for x in range(0, size, half):
                odd[x] += middle * (even[x] + following[x])
        else:
            for x in range(0, size, half):
                odd[x] += even[x]
