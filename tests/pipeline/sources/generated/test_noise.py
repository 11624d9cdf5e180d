"""Noise has the statistics that its name promises."""

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kurtosis

from pipeline.sources.drawing import Dice
from pipeline.sources.generated import noise, picture_rng
from pipeline.sources.generated.noise.spectra import amplitudes, spectral_noise
from pipeline.sources.generated.noise.wavelets import wavelet_noise

GOLDEN_WHITE = ["43bd461ab422b1e9", "31e920efcdb55b95", "96925285d7061c35"]


def measured_alpha(field: NDArray[np.float32]) -> float:
    """Minus the slope of log power over log frequency, rings of one cycle, Nyquist left out."""
    size = len(field)
    power = np.abs(np.fft.fft2(field - field.mean())) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size, 1 / size)] * 2))
    ring = np.rint(frequency).astype(int)
    rings = np.arange(4, size * 2 // 5)
    mean_power = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
    return float(-np.polyfit(np.log(rings), np.log(mean_power[rings]), 1)[0])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("size", [65, 256])
def test_power_falls_as_asked(alpha: float, size: int) -> None:
    state = Dice(picture_rng("test", 0, 0)).state()
    fields = spectral_noise(state, amplitudes(size, alpha))
    assert measured_alpha(fields[0]) == pytest.approx(alpha, abs=0.1)
    # Of the two in one transform neither has its modulus fixed, and few frequencies scatter.
    for half_size in fields[1:]:
        assert measured_alpha(half_size) == pytest.approx(alpha, abs=0.1 if size == 256 else 0.4)


def test_pictures_of_natural_noise_have_alpha_near_two() -> None:
    params = noise.Params()
    slopes = []
    for index in range(20):
        pixels = noise.draw(picture_rng("noise.natural", 0, index), params, "natural")
        if 5 < pixels.mean() < 250:  # clipping adds fine detail
            slopes.append(measured_alpha(pixels.mean(axis=2)))
    assert len(slopes) > 15
    assert 1.4 < np.median(slopes) < 2.3


def test_variance_is_known_beforehand() -> None:
    for index in range(5):
        state = Dice(picture_rng("test", 0, index)).state()
        luma, *chroma = spectral_noise(state, amplitudes(128, 2.0))
        assert luma.std() == pytest.approx(1, abs=1e-3)
        assert all(plane.std() == pytest.approx(1, abs=0.2) for plane in chroma)


def test_fields_of_one_picture_are_independent() -> None:
    state = Dice(picture_rng("test", 0, 0)).state()
    luma, first, second = spectral_noise(state, amplitudes(256, 1.0))
    half = luma.reshape(128, 2, 128, 2).mean(axis=(1, 3))
    correlations = np.corrcoef([half.ravel(), first.ravel(), second.ravel()])
    assert np.abs(correlations - np.eye(3)).max() < 0.05


def test_oriented_spectra_differ_by_axis() -> None:
    state = Dice(picture_rng("test", 0, 0)).state()
    field = spectral_noise(state, amplitudes(256, 0.5, 3.5))[0]
    across, along = (np.abs(np.diff(field, axis=axis)).mean() for axis in (1, 0))
    assert across > 5 * along


def test_wavelet_coefficients_are_heavy_tailed_and_spectra_are_not() -> None:
    state = Dice(picture_rng("test", 0, 0)).state()
    sparse = wavelet_noise(state, 256, tail=0.5, decay=0.5, is_smooth=True)
    even = spectral_noise(state, amplitudes(256, 2.0))[0]
    # What the 5/3 transform calls details: an odd row less the mean of its even neighbours.
    details = [f[1:-1:2, ::2] - (f[:-2:2, ::2] + f[2::2, ::2]) / 2 for f in (sparse, even)]
    assert kurtosis(details[0], axis=None) > 3
    assert abs(kurtosis(details[1], axis=None)) < 0.3


def test_white_noise_is_uncorrelated_and_the_same_on_any_machine() -> None:
    digests = []
    for index in range(3):
        pixels = noise.draw(picture_rng("noise.white", 0, index), noise.Params(), "white")
        digests.append(hashlib.sha256(pixels).hexdigest()[:16])
    assert digests == GOLDEN_WHITE
    pixels = noise.draw(picture_rng("noise.white", 0, 1), noise.Params(), "white")
    grain = next(g for g in (6, 4, 3, 2, 1) if (pixels[:g, :g] == pixels[0, 0]).all())
    grains = pixels[::grain, ::grain, 1].astype(float)
    assert abs(np.corrcoef(grains[:, 1:].ravel(), grains[:, :-1].ravel())[0, 1]) < 0.03
