"""Antialiased resampling of uint8 pixels, by matrix products in numpy.

The same bits as `torch.nn.functional.interpolate(..., antialias=True)` of uint8, whose arithmetic
it repeats (weights as 16-bit integers, columns first, each pass rounded to uint8), on any machine
and without waiting seconds for torch to be imported.

Shapes: H W image, B outputs of a block, T inputs that they are made of.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]

_BLOCK = 8  # outputs a matrix product; more of them would multiply more zeros
_MAX_EXACT = {np.float32: 2**24, np.float64: 2**53}  # integers up to these are exact
_MAX_WEIGHT_BITS = 15
_MAX_PRECISION = 22


class _Block(NamedTuple):
    """Outputs from `first` on are weights_BT @ inputs[start:stop]."""

    first: int
    start: int
    stop: int
    weights_BT: NDArray[Any]


class _Pass(NamedTuple):
    """All blocks along one side, whose sums are exact in `kind`."""

    kind: type[np.float32] | type[np.float64]
    blocks: tuple[_Block, ...]


def resize_pixels(
    pixels_HWC: NDArray[np.uint8],
    height: int,
    width: int,
    interpolation: Interpolation = "bilinear",
) -> NDArray[np.uint8]:
    """RGB pixels at another size."""
    if pixels_HWC.shape[1] != width:
        pixels_HWC = _resize_rows(pixels_HWC, width, interpolation)
    if pixels_HWC.shape[0] != height:
        pixels_HWC = _resize_columns(pixels_HWC, height, interpolation)
    return pixels_HWC


def _resize_rows(
    pixels_HWC: NDArray[np.uint8], width: int, interpolation: Interpolation
) -> NDArray[np.uint8]:
    height, before, channels = pixels_HWC.shape
    kind, blocks = _interleaved(before, width, interpolation, channels)
    rows = pixels_HWC.reshape(height, -1).astype(kind)
    resized = np.empty((height, width * channels), kind)
    for first, start, stop, weights_TB in blocks:
        np.matmul(rows[:, start:stop], weights_TB, out=resized[:, first:][:, : weights_TB.shape[1]])
    return _rounded(resized).reshape(height, width, channels)


def _resize_columns(
    pixels_HWC: NDArray[np.uint8], height: int, interpolation: Interpolation
) -> NDArray[np.uint8]:
    before, width, channels = pixels_HWC.shape
    kind, blocks = _pass(before, height, interpolation)
    rows = pixels_HWC.reshape(before, -1).astype(kind)
    resized = np.empty((height, width * channels), kind)
    for first, start, stop, weights_BT in blocks:
        np.matmul(weights_BT, rows[start:stop], out=resized[first : first + len(weights_BT)])
    return _rounded(resized).reshape(height, width, channels)


def _rounded(sums: NDArray[Any]) -> NDArray[np.uint8]:
    sums += 0.5  # and cut off, which is down, since nothing is below 0 then
    np.clip(sums, 0, 255, out=sums)
    return sums.astype(np.uint8)


@functools.lru_cache(256)
def _interleaved(before: int, after: int, interpolation: Interpolation, channels: int) -> _Pass:
    """The pass for rows of pixels whose channels lie side by side; weights are TB here."""
    kind, blocks = _pass(before, after, interpolation)
    identity: NDArray[Any] = np.eye(channels, dtype=kind)
    return _Pass(
        kind,
        tuple(
            _Block(
                first * channels,
                start * channels,
                stop * channels,
                np.ascontiguousarray(np.kron(weights_BT, identity).T),
            )
            for first, start, stop, weights_BT in blocks
        ),
    )


@functools.lru_cache(256)
def _pass(before: int, after: int, interpolation: Interpolation) -> _Pass:
    windows = [_window(output, before, after, interpolation) for output in range(after)]
    precision = _precision(max(max(weights) for _, weights in windows))
    kind = np.float32 if 256 << precision <= _MAX_EXACT[np.float32] else np.float64
    blocks = []
    for first in range(0, after, _BLOCK):
        part = windows[first : first + _BLOCK]
        start = min(start for start, _ in part)
        stop = max(start + len(weights) for start, weights in part)
        weights_BT = np.zeros((len(part), stop - start), kind)
        for row, (begin, weights) in zip(weights_BT, part, strict=True):
            whole = [int(w * 2**precision + (0.5 if w >= 0 else -0.5)) for w in weights]
            row[begin - start :][: len(whole)] = whole
        blocks.append(_Block(first, start, stop, weights_BT * kind(2.0**-precision)))
    return _Pass(kind, tuple(blocks))


def _precision(largest: float) -> int:
    """Bits behind the point of weights that, as integers, have to fit 16 bits."""
    precision = 0
    while (
        precision < _MAX_PRECISION
        and int(0.5 + largest * 2 ** (precision + 1)) < 1 << _MAX_WEIGHT_BITS
    ):
        precision += 1
    return precision


def _window(
    output: int, before: int, after: int, interpolation: Interpolation
) -> tuple[int, list[float]]:
    """The first input that an output is made of, and the weight of each from there on."""
    kernel, width = _KERNELS[interpolation]
    scale = before / after
    stretch = max(scale, 1.0)  # antialiasing: the kernel covers what becomes one pixel
    center, support = scale * (output + 0.5), width / 2 * stretch
    start = max(int(center - support + 0.5), 0)
    stop = min(int(center + support + 0.5), before)
    weights = [kernel(abs((index - center + 0.5) * (1 / stretch))) for index in range(start, stop)]
    total = sum(weights)
    return start, [weight / total for weight in weights]


def _triangle(distance: float) -> float:
    return max(1.0 - distance, 0.0)


def _cubic(distance: float) -> float:
    """Keys 1981 with a = -0.5, as in Pillow."""
    if distance < 1:
        return (1.5 * distance - 2.5) * distance * distance + 1
    if distance < 2:
        return (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return 0.0


_KERNELS: dict[Interpolation, tuple[Callable[[float], float], int]] = {
    "bilinear": (_triangle, 2),
    "bicubic": (_cubic, 4),
}
