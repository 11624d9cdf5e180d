"""Drawing tools of generators: random scalars, compiled kernels, palettes, colour ramps.

Randomness comes only from raw words, of Philox in Python and of SplitMix64 in kernels: the streams
of numpy's distributions may change between releases, these do not.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

T = TypeVar("T")
Kernel = TypeVar("Kernel", bound=Callable[..., object])

State = NDArray[np.uint64]  # one word

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ANY, _HUES, _PALE, _DARK, _NATURAL, _GREYS = range(6)
_SCHEMES = (_ANY, _HUES, _HUES, _PALE, _DARK, _NATURAL, _GREYS)


def compiled(kernel: Kernel) -> Kernel:
    """Compiles at the first call, which takes seconds; later processes load it from a disk cache.

    Numba uses the first of NUMBA_CACHE_DIR, `__pycache__` and the user's cache directory that it
    can write to; without one, every process compiles. Floating point is strict: no sum is
    reordered. (Numba does not notice a change in a kernel that another file's kernel calls: after
    editing one here, remove the *.nbi files.)
    """
    try:
        return cast(Kernel, njit(cache=True, nogil=True)(kernel))
    except RuntimeError:  # "no locator available"
        return cast(Kernel, njit(nogil=True)(kernel))


@compiled
def next_word(state: State) -> np.uint64:
    """64 random bits; `state` is one word. SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    state[0] += _GAMMA
    z: np.uint64 = state[0]
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@compiled
def next_unit(state: State) -> float:
    """Uniform in [0, 1), 53 bits."""
    return (next_word(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled
def next_below(state: State, limit: int) -> int:
    """Uniform in 0 .. limit - 1; the bias is under limit / 2^32."""
    # Made signed: in Numba the sum of a signed and an unsigned number is a float.
    return int(np.int64(((next_word(state) >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32)))


@compiled
def to_byte(level: int | np.int32) -> int:
    """Clipped to 0 .. 255."""
    return int(min(max(level, 0), 255))


class Dice:
    """Random scalars from raw words: 0.2 us each, numpy's distributions take 1 us."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._raw = rng.bit_generator.random_raw

    def state(self) -> State:
        """A seed for a kernel's own stream."""
        return np.asarray(self._raw(1))

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        return float((self._raw() >> 11) * 2.0**-53)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def below(self, limit: int) -> int:
        """Uniform in 0 .. limit - 1."""
        return int(((self._raw() >> 32) * limit) >> 32)

    def whole(self, low: int, high: int) -> int:
        """Uniform in low .. high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def bytes(self, count: int) -> NDArray[np.uint8]:
        words: NDArray[np.uint64] = self._raw(-(-count // 8))
        return words.astype("<u8").view(np.uint8)[:count]

    def palette(self, num_colours: int, *, is_vivid: bool = False) -> NDArray[np.uint8]:
        """Matching colours, RGB in rows: any or few hues, or, unless `is_vivid`, also pale, dark,
        natural ones or greys.
        """
        colours = np.empty((num_colours, 3), np.uint8)
        scheme = self.pick(_SCHEMES[:2] if is_vivid else _SCHEMES)
        _fill_palette(self.state(), scheme, colours)
        return colours


def ramp(colours: NDArray[np.uint8], num_steps: int = 256) -> NDArray[np.uint8]:
    """`num_steps` colours, evenly interpolated through all of `colours`."""
    steps = np.empty((num_steps, 3), np.uint8)
    _fill_ramp(colours, steps)
    return steps


@compiled
def _fill_ramp(colours: NDArray[np.uint8], steps: NDArray[np.uint8]) -> None:
    last = len(steps) - 1
    for i in range(len(steps)):
        position = i * (len(colours) - 1)
        k = min(position // last, len(colours) - 2)
        rest = position - k * last
        for channel in range(3):
            low, high = np.int64(colours[k, channel]), np.int64(colours[k + 1, channel])
            steps[i, channel] = (low * (last - rest) + high * rest + last // 2) // last


@compiled
def _fill_palette(state: State, scheme: int, colours: NDArray[np.uint8]) -> None:
    hue, spread = next_unit(state), 0.02 + 0.2 * next_unit(state)
    for i in range(len(colours)):
        if scheme == _ANY:
            for channel in range(3):
                colours[i, channel] = next_below(state, 256)
            continue
        if scheme == _NATURAL:  # mostly grey, then blue to yellow (Ruderman et al. 1998)
            grey = 255 * next_unit(state)
            warm = 70 * (next_unit(state) - 0.5)
            green = 24 * (next_unit(state) - 0.5)
            colours[i, 0] = min(max(grey + warm + green, 0), 255)
            colours[i, 1] = min(max(grey - 2 * green, 0), 255)
            colours[i, 2] = min(max(grey - warm + green, 0), 255)
            continue
        # One hue and, for a third of the colours, its opposite.
        h = hue + spread * (next_unit(state) - 0.5) + (0.5 if next_below(state, 3) == 0 else 0.0)
        saturation, value = next_unit(state), next_unit(state)
        if scheme == _HUES:
            saturation, value = 0.3 + 0.7 * saturation, 0.15 + 0.85 * value
        elif scheme == _PALE:
            saturation, value = 0.45 * saturation, 0.75 + 0.25 * value
        elif scheme == _DARK:
            saturation, value = 0.9 * saturation, 0.05 + 0.55 * value * value
        else:  # greys with a slight tint
            saturation = 0.08 * saturation
        for channel in range(3):
            # HSV: each channel is a trapezoid over the hue, a third of the circle apart.
            at = (h + channel / 3.0) % 1.0 * 6
            weight = min(max(abs(at - 3) - 1, 0.0), 1.0)
            colours[i, channel] = 255 * value * (1 - saturation * (1 - weight))
