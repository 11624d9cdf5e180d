"""RandAugment and TrivialAugment: torchvision's operations, chance from the generator passed in.

    randaugment     two of the operations, each of magnitude 9 of 30, the sign by chance
                    Cubuk et al. 2020, arXiv:1909.13719
    trivialaugment  one of them, of any magnitude of its wide range
                    Mueller and Hutter 2021, arXiv:2103.10158

Ranges are those of torchvision's RandAugment and TrivialAugmentWide, whose own chance comes from
torch's global generator: that has no seed a picture, and is shared by threads. Lines and corners
that an operation leaves empty are grey. Shapes: C H W image.
"""

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

_NUM_OPERATIONS = 2
_MAGNITUDE = 9 / 30
_NUM_MAGNITUDES = 31  # of trivialaugment, from 0 on
_GREY = [128.0]

_Operation = Callable[[Tensor, float], Tensor]


def rand_augment(view_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Two of the operations; the same one may come twice."""
    for index in rng.integers(len(OPERATIONS), size=_NUM_OPERATIONS):
        view_CHW = apply(view_CHW, list(OPERATIONS)[index], _MAGNITUDE, rng, is_wide=False)
    return view_CHW


def trivial_augment(view_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    """One of the operations, at one of 31 magnitudes."""
    name = list(OPERATIONS)[int(rng.integers(len(OPERATIONS)))]
    magnitude = int(rng.integers(_NUM_MAGNITUDES)) / (_NUM_MAGNITUDES - 1)
    return apply(view_CHW, name, magnitude, rng, is_wide=True)


def apply(
    view_CHW: Tensor, name: str, magnitude: float, rng: np.random.Generator, *, is_wide: bool
) -> Tensor:
    """An operation at a magnitude in [0, 1] of its range, its direction by chance."""
    operation, narrow, wide, is_signed = OPERATIONS[name]
    strength = magnitude * (wide if is_wide else narrow)
    if name.startswith("Translate") and not is_wide:
        strength *= view_CHW.shape[-1 if name.endswith("X") else -2]
    if is_signed and rng.random() < 0.5:
        strength = -strength
    return operation(view_CHW, strength)


def _affine(
    view_CHW: Tensor, *, shear: tuple[float, float] = (0, 0), shift: tuple[float, float] = (0, 0)
) -> Tensor:
    moved: Tensor = F.affine(
        view_CHW,
        angle=0.0,
        translate=[int(pixels) for pixels in shift],
        scale=1.0,
        shear=[math.degrees(math.atan(slope)) for slope in shear],
        interpolation=InterpolationMode.NEAREST,
        fill=_GREY,
        center=[0, 0],
    )
    return moved


def _drop_bits(view_CHW: Tensor, bits_lost: float) -> Tensor:
    posterized: Tensor = F.posterize(view_CHW, bits=round(8 - bits_lost))
    return posterized


# Operation, range of RandAugment, range of TrivialAugmentWide, whether the sign is by chance.
# Translations: shares of the side (150 of 331 pixels), and pixels.
OPERATIONS: dict[str, tuple[_Operation, float, float, bool]] = {
    "Identity": (lambda view, _: view, 0, 0, False),
    "ShearX": (lambda view, by: _affine(view, shear=(by, 0)), 0.3, 0.99, True),
    "ShearY": (lambda view, by: _affine(view, shear=(0, by)), 0.3, 0.99, True),
    "TranslateX": (lambda view, by: _affine(view, shift=(by, 0)), 150 / 331, 32, True),
    "TranslateY": (lambda view, by: _affine(view, shift=(0, by)), 150 / 331, 32, True),
    "Rotate": (lambda view, by: F.rotate(view, by, fill=_GREY), 30, 135, True),
    "Brightness": (lambda view, by: F.adjust_brightness(view, 1 + by), 0.9, 0.99, True),
    "Color": (lambda view, by: F.adjust_saturation(view, 1 + by), 0.9, 0.99, True),
    "Contrast": (lambda view, by: F.adjust_contrast(view, 1 + by), 0.9, 0.99, True),
    "Sharpness": (lambda view, by: F.adjust_sharpness(view, 1 + by), 0.9, 0.99, True),
    "Posterize": (_drop_bits, 4, 6, False),
    "Solarize": (lambda view, by: F.solarize(view, 255 * (1 - by)), 1, 1, False),
    "AutoContrast": (lambda view, _: F.autocontrast(view), 0, 0, False),
    "Equalize": (lambda view, _: F.equalize(view), 0, 0, False),
}
