"""Noise: white, with 1/f^alpha spectra, and with heavy-tailed wavelet coefficients.

The statistical image models of Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021
(https://arxiv.org/abs/2106.05963): spectrum, spectrum with colour, wavelet marginals. Power falls
as 1/f^alpha, and photographs have alpha near 2 (Field 1987); colours vary along the decorrelated
axes of photographs - grey, then blue to yellow, then red to green (Ruderman et al. 1998).

    white      every pixel for itself, or grains of several pixels; grey or coloured
    pink       alpha 0.5 to 1.5
    natural    alpha 1.5 to 2.5
    cloud      alpha 2.5 to 4
    oriented   amplitude 1 / (|fx|^a + |fy|^b), a and b 0.5 to 3.5, as in the paper
    wavelet    coefficients of a 5/3 or a Haar transform with marginals exp(-|x|^p), p 0.5 to 1

White and wavelet noise are integers or strict floats in a fixed order. Spectra go through an FFT
and a cosine, whose last bits differ between releases and machines; rounding to 8 bits hides nearly
all of that, not all.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.drawing import Dice, State, compiled, next_word
from pipeline.sources.generated import (
    PictureParams,
    PictureSource,
    Pixels,
    all_families,
    draw_family,
    toy_of,
)
from pipeline.sources.generated.noise.spectra import amplitudes, spectral_noise
from pipeline.sources.generated.noise.wavelets import wavelet_noise

Plane = NDArray[np.float32]
Planes = tuple[Plane, Plane, Plane]
Family = Literal["white", "pink", "natural", "cloud", "oriented", "wavelet"]

_ALPHA_STEP = 0.1  # in steps, so that amplitudes can be cached
_TAILS = (0.5, 0.65, 0.8, 1.0)
_BLACK, _WHITE = np.float32(0), np.float32(255)


class Params(PictureParams, frozen=True, extra="forbid"):
    """Which noises."""

    families: tuple[Family, ...] = all_families(Family)


def draw(rng: np.random.Generator, params: Params, family: str = "") -> Pixels:
    """uint8[image_size, image_size, 3] of noise."""
    return draw_family(_FAMILIES, rng, params, family)


Source = partial(PictureSource, "noise", draw)
toy = partial(toy_of, Params)


def _draw_white(rng: np.random.Generator, size: int) -> Pixels:
    """Levels between two colours; one random number for all channels, or one for each."""
    dice = Dice(rng)
    grain = dice.pick((1, 1, 1, 2, 3, 4, 6))
    low, high = dice.palette(2)
    if dice.chance(0.5):
        low, high = low // 2, 255 - (255 - high) // 2
    pixels = np.empty((size, size, 3), np.uint8)
    _fill_white(
        dice.state(), grain, dice.chance(0.7), low.astype(np.int64), high.astype(np.int64), pixels
    )
    return pixels


def _draw_spectral(rng: np.random.Generator, size: int, *, lowest: float, highest: float) -> Pixels:
    dice = Dice(rng)
    alpha = _ALPHA_STEP * dice.whole(round(lowest / _ALPHA_STEP), round(highest / _ALPHA_STEP))
    return _coloured(dice, size, spectral_noise(dice.state(), amplitudes(size, alpha)))


def _draw_oriented(rng: np.random.Generator, size: int) -> Pixels:
    dice = Dice(rng)
    a, b = (0.25 * dice.whole(2, 14) for _ in "ab")
    return _coloured(dice, size, spectral_noise(dice.state(), amplitudes(size, a, b)))


def _draw_wavelet(rng: np.random.Generator, size: int) -> Pixels:
    dice = Dice(rng)
    tail, is_smooth, decay = dice.pick(_TAILS), dice.chance(0.75), 2 ** dice.between(-1.2, -0.4)
    luma, first, second = (
        wavelet_noise(dice.state(), side, tail=tail, decay=decay, is_smooth=is_smooth)
        for side in (size, size // 2, size // 2)
    )
    return _coloured(dice, size, (luma, first, second))


def _coloured(dice: Dice, size: int, fields: Planes) -> Pixels:
    """Fields of variance 1 as luma and chroma about a mean colour, clipped to 8 bits."""
    mean = dice.palette(1)[0].astype(np.float32)
    if dice.chance(0.5):  # nearer to the middle, where little is clipped
        mean = np.float32(0.5) * mean + np.float32(64)
    contrast = dice.between(20, 80)
    # Photographs have a fifth of their contrast in colour; here from none to more than in grey.
    colour = contrast * dice.pick((0.0, 0.2, 0.2, 0.5, 1.0))
    # Axes of unit length: (1, 1, 1), (1, 0, -1) and (1, -2, 1).
    gains = (contrast, colour * 3**0.5 / 2**0.5, colour * dice.between(0.3, 1.5) / 2**0.5)
    pixels = np.empty((size, size, 3), np.uint8)
    _mix(*fields, mean, np.array(gains, np.float32), pixels)
    return pixels


@compiled
def _fill_white(
    state: State,
    grain: int,
    is_coloured: bool,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    pixels: Pixels,
) -> None:
    size, span = len(pixels), high - low
    for y in range(0, size, grain):
        for x in range(0, size, grain):
            word = next_word(state)
            for channel in range(3):
                share = np.int64(word & np.uint64(0xFFFF))
                pixels[y, x, channel] = low[channel] + ((span[channel] * share) >> 16)
                if is_coloured:
                    word >>= np.uint64(16)
            for i in range(x + 1, min(x + grain, size)):
                pixels[y, i] = pixels[y, x]
        for i in range(y + 1, min(y + grain, size)):
            pixels[i] = pixels[y]


@compiled
def _mix(
    luma: Plane, first: Plane, second: Plane, mean: Plane, gains: Plane, pixels: Pixels
) -> None:
    """Chroma has half the resolution and is repeated: JPEG 4:2:0 keeps no more."""
    size, last = len(pixels), len(first) - 1
    grey, warm, green = gains
    for y in range(size):
        at = min(y // 2, last)
        for x in range(0, size, 2):
            b = warm * first[at, min(x // 2, last)]
            c = green * second[at, min(x // 2, last)]
            red, mid, blue = mean[0] + b + c, mean[1] - c - c, mean[2] - b + c
            for i in range(x, min(x + 2, size)):
                a = grey * luma[y, i]
                pixels[y, i, 0] = np.uint8(min(max(red + a, _BLACK), _WHITE))
                pixels[y, i, 1] = np.uint8(min(max(mid + a, _BLACK), _WHITE))
                pixels[y, i, 2] = np.uint8(min(max(blue + a, _BLACK), _WHITE))


_FAMILIES: dict[str, Callable[[np.random.Generator, int], Pixels]] = {
    "white": _draw_white,
    "pink": partial(_draw_spectral, lowest=0.5, highest=1.5),
    "natural": partial(_draw_spectral, lowest=1.5, highest=2.5),
    "cloud": partial(_draw_spectral, lowest=2.5, highest=4.0),
    "oriented": _draw_oriented,
    "wavelet": _draw_wavelet,
}
