"""Fields whose power falls with frequency by a given law: random phases, one inverse FFT."""

from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from pipeline.sources.drawing import State, compiled, next_word

Plane = NDArray[np.float32]

_NUM_PHASES = 4096


def spectral_noise(state: State, amplitude: Plane) -> tuple[Plane, Plane, Plane]:
    """Three independent fields of mean 0 and variance 1: one of full size, two of half that.

    `amplitude` is that of rows of all, columns of non-negative frequencies. Only phases are random
    (Galerne et al. 2011), and they come from a table; so variance is the sum of squares of
    `amplitude`, known beforehand, and need not be measured. The two small fields are the real and
    the imaginary part of one transform, so that theirs is 1 in the mean only.
    """
    size = len(amplitude)
    half = size // 2
    large = np.empty((size, size // 2 + 1), np.complex64)
    small = np.empty((half, half), np.complex64)
    _fill_spectrum(state, amplitude, _phases(), large, small)
    luma = scipy.fft.irfft2(large, s=(size, size), norm="forward", overwrite_x=True, workers=1)
    chroma = scipy.fft.ifft2(small, norm="forward", overwrite_x=True, workers=1)
    return luma, chroma.real, chroma.imag


@lru_cache(maxsize=128)
def amplitudes(size: int, a: float, b: float | None = None) -> Plane:
    """float32[size, size // 2 + 1], scaled to variance 1: f^(-a/2), or the paper's with a and b."""
    fy = np.abs(np.fft.fftfreq(size, 1 / size))[:, None]
    fx = np.arange(size // 2 + 1)[None]
    with np.errstate(divide="ignore"):
        plane = np.hypot(fx, fy) ** (-a / 2) if b is None else 1 / (fx**a + fy**b)
    plane[0, 0] = 0  # the mean is chosen separately
    if size % 2 == 0:
        plane[:, -1] = 0  # Nyquist's column cannot have free phases
    power = plane**2
    return np.asarray(plane / np.sqrt(2 * power.sum() - power[:, 0].sum()), np.float32)


@lru_cache(maxsize=1)
def _phases() -> NDArray[np.complex64]:
    angles = 2j * np.pi * np.arange(_NUM_PHASES) / _NUM_PHASES
    return np.asarray(np.exp(angles), np.complex64)


@compiled
def _fill_spectrum(
    state: State,
    amplitude: Plane,
    phases: NDArray[np.complex64],
    large: NDArray[np.complex64],
    small: NDArray[np.complex64],
) -> None:
    """Random phases; column 0 of `large` is made Hermitian, as a real field has it."""
    size, columns = large.shape
    mask = np.uint64(len(phases) - 1)
    for y in range(size):
        for x in range(0, columns, 4):  # four phases a word
            word = next_word(state)
            for i in range(min(4, columns - x)):
                large[y, x + i] = amplitude[y, x + i] * phases[word & mask]
                word >>= np.uint64(16)
    for y in range(1, (size + 1) // 2):
        large[size - y, 0] = large[y, 0].real - 1j * large[y, 0].imag
    if size % 2 == 0:
        large[size // 2, 0] = amplitude[size // 2, 0]
    half = len(small)
    for y in range(half):
        from_y = y if 2 * y <= half else size - half + y
        for x in range(0, half, 4):
            word = next_word(state)
            for i in range(min(4, half - x)):
                at = x + i if 2 * (x + i) <= half else half - x - i
                small[y, x + i] = np.float32(1.41421356) * (
                    amplitude[from_y, at] * phases[word & mask]
                )
                word >>= np.uint64(16)
