"""Antialiased resampling of uint8 pixels, by torch or by matrix products in numpy.

Torch takes seconds to import and then a third to a twentieth of the time of numpy: it is used
where it is imported anyway, and after as much work as its import is worth. Both give the same bits:
numpy repeats the arithmetic of
`torch.nn.functional.interpolate(..., antialias=True)` of uint8 (weights as 16-bit integers, columns
first, each pass rounded to uint8).

Shapes: H W image, B outputs of a block, T inputs that they are made of.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]

_BLOCK = 12  # inputs that the outputs of a matrix product step over; more are more zeros
_ROWS_AT_ONCE = 128
_MAX_EXACT = {np.float32: 2**24, np.float64: 2**53}  # integers up to these are exact
_MAX_WEIGHT_BITS = 15
_MAX_KEPT = 64  # sizes whose weights are kept, some 100 kB each
_MAX_PRECISION = 22
_PIXELS_WORTH_TORCH = 250_000_000  # at 12 ns each in numpy, what it takes to import torch

_num_resized = 0  # pixels, in numpy


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
    if pixels_HWC.shape[:2] == (height, width):
        return pixels_HWC
    if torch := _torch(len(pixels_HWC) * pixels_HWC.shape[1]):
        # HWC memory viewed as NCHW is channels_last, for which torch has a fast uint8 kernel.
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1)[None],
            size=(height, width),
            mode=interpolation,
            antialias=True,
        )
        return cast(NDArray[np.uint8], resized[0].permute(1, 2, 0).contiguous().numpy())
    return resize_in_numpy(pixels_HWC, height, width, interpolation)


def _torch(num_pixels: int) -> Any:
    """The module, or None as long as its import would take longer than to do without."""
    global _num_resized
    if "torch" not in sys.modules:
        _num_resized += num_pixels
        if _num_resized <= _PIXELS_WORTH_TORCH:
            return None
    return importlib.import_module("torch")  # waits where another thread is importing it


def resize_in_numpy(
    pixels_HWC: NDArray[np.uint8], height: int, width: int, interpolation: Interpolation
) -> NDArray[np.uint8]:
    """`resize_pixels` without torch."""
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
    resized = np.empty((height, width, channels), np.uint8)
    # A few rows at a time: as floats, a large picture takes eight times its size.
    for top in range(0, height, _ROWS_AT_ONCE):
        part = pixels_HWC[top : top + _ROWS_AT_ONCE]
        rows = part.reshape(len(part), -1).astype(kind)
        sums = np.empty((len(part), width * channels), kind)
        for first, start, stop, weights_TB in blocks:
            out = sums[:, first : first + weights_TB.shape[1]]
            np.matmul(rows[:, start:stop], weights_TB, out=out)
        resized[top : top + _ROWS_AT_ONCE] = _rounded(sums).reshape(len(part), width, channels)
    return resized


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


@functools.lru_cache(_MAX_KEPT)
def _interleaved(before: int, after: int, interpolation: Interpolation, channels: int) -> _Pass:
    """The pass for rows of pixels whose channels lie side by side; weights are TB here."""
    kind, blocks = _pass(before, after, interpolation)
    interleaved = []
    for first, start, stop, weights_BT in blocks:
        num_outputs, num_inputs = weights_BT.shape
        weights_TCBC = np.zeros((num_inputs, channels, num_outputs, channels), kind)
        for channel in range(channels):
            weights_TCBC[:, channel, :, channel] = weights_BT.T
        weights_TB = weights_TCBC.reshape(num_inputs * channels, num_outputs * channels)
        interleaved.append(_Block(first * channels, start * channels, stop * channels, weights_TB))
    return _Pass(kind, tuple(interleaved))


@functools.lru_cache(_MAX_KEPT)
def _pass(before: int, after: int, interpolation: Interpolation) -> _Pass:
    starts_B, weights_BT = _windows(before, after, interpolation)
    precision = _precision(float(weights_BT.max()))
    kind = np.float32 if 256 << precision <= _MAX_EXACT[np.float32] else np.float64
    whole_BT = np.trunc(weights_BT * 2.0**precision + np.copysign(0.5, weights_BT))
    whole_BT = (whole_BT * 2.0**-precision).astype(kind)
    inputs_BT = starts_B[:, None] + np.arange(weights_BT.shape[1])
    blocks, size = [], max(1, round(_BLOCK / max(before / after, 1.0)))
    for first in range(0, after, size):
        rows = slice(first, first + size)
        start, stop = int(inputs_BT[first, 0]), int(inputs_BT[rows][-1, -1]) + 1
        block_BT = np.zeros((len(inputs_BT[rows]), stop - start), kind)
        np.put_along_axis(block_BT, inputs_BT[rows] - start, whole_BT[rows], axis=1)
        # Windows at the end are shorter; what is behind the last input has no weight.
        blocks.append(_Block(first, start, min(stop, before), block_BT[:, : before - start].copy()))
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


def _windows(
    before: int, after: int, interpolation: Interpolation
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The first input that each output is made of, and the weights of those from there on."""
    kernel, width = _KERNELS[interpolation]
    scale = before / after
    stretch = max(scale, 1.0)  # antialiasing: the kernel covers what becomes one pixel
    center_B, support = scale * (np.arange(after) + 0.5), width / 2 * stretch
    starts_B = np.maximum((center_B - support + 0.5).astype(np.int64), 0)
    stops_B = np.minimum((center_B + support + 0.5).astype(np.int64), before)
    inputs_BT = starts_B[:, None] + np.arange((stops_B - starts_B).max())
    distance_BT = np.abs((inputs_BT - center_B[:, None] + 0.5) * (1 / stretch))
    weights_BT = np.where(inputs_BT < stops_B[:, None], kernel(distance_BT), 0.0)
    # Added one by one, since the last bit of a sum depends on the order.
    return starts_B, weights_BT / weights_BT.cumsum(axis=1)[:, -1:]


def _triangle(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - distance, 0.0)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys 1981 with a = -0.5, as in Pillow."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


_KERNELS: dict[Interpolation, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], int]] = {
    "bilinear": (_triangle, 2),
    "bicubic": (_cubic, 4),
}
