"""Random views of an image: uint8 out, randomness only from the generator passed in, any device.

Shapes: C H W image.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pipeline.encoders.preprocessing import Preprocessing, size_before_crop
from train.config import Strength

_Operation = Callable[[Tensor, float], Tensor]

_MIN_AREA = 0.35  # of the image: a smaller crop of a cat is often no cat
_JITTER = 0.3  # largest relative change of brightness, contrast and saturation
_LUMA_C = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
_ERASE_CHANCE = 0.25
_MAX_ERASED_SIDE = 0.3  # of the image's side
_NUM_OPERATIONS = 2  # of randaugment
_MAGNITUDE = 9 / 30  # of randaugment
_NUM_MAGNITUDES = 31  # of trivialaugment, from 0 on
_GREY = [128.0]


def augment(
    pixels_CHW: Tensor, *, size: int, strength: Strength, rng: np.random.Generator
) -> Tensor:
    """A random crop, resized to `size` by `size` and flipped by chance, then what `strength` adds.

    `light` and `heavy` change colours and may grey out a small rectangle; randaugment and
    trivialaugment have their own operations. pixels_CHW: uint8, or the same values as float32,
    which are then resampled in float.
    """
    assert strength != "off"
    top, left, height, width = _random_crop(pixels_CHW.shape[1], pixels_CHW.shape[2], rng)
    crop_1CHW = pixels_CHW[None, :, top : top + height, left : left + width]
    # Copied first: the resampler does not recognise a part of a channels-last image as channels
    # last, which costs twice the time here, and more when the result is copied into a batch.
    crop_1CHW = crop_1CHW.contiguous(memory_format=torch.channels_last)
    view_CHW = as_uint8(interpolate(crop_1CHW, (size, size), mode="bilinear", antialias=True)[0])
    if rng.random() < 0.5:
        view_CHW = view_CHW.flip(2)
    if strength == "crop":
        return view_CHW
    if strength == "randaugment":
        return rand_augment(view_CHW, rng)
    if strength == "trivialaugment":
        return trivial_augment(view_CHW, rng)
    view_CHW = _jitter_colors(view_CHW, rng)
    if strength == "heavy":
        for index in rng.choice(len(_DISTORTIONS), size=2, replace=False):
            view_CHW = _DISTORTIONS[index](view_CHW, rng.random())
    return _erase(view_CHW, rng) if rng.random() < _ERASE_CHANCE else view_CHW


def crop_square(pixels_CHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """As `pipeline.encoders.preprocessing.crop_decoded`, on the pixels' device, of floats too."""
    size = size_before_crop(pixels_CHW.shape[1], pixels_CHW.shape[2], preprocessing)
    if size != tuple(pixels_CHW.shape[1:]):
        resized = interpolate(
            pixels_CHW[None], size=size, mode=preprocessing.interpolation, antialias=True
        )
        pixels_CHW = resized[0]
    side = preprocessing.image_size
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return as_uint8(pixels_CHW[:, top : top + side, left : left + side].contiguous())


def as_uint8(pixels: Tensor) -> Tensor:
    """Rounds pixels resampled in float as the resampler of uint8 does."""
    if pixels.dtype == torch.uint8:
        return pixels
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _random_crop(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width, of random area and aspect (3/4 to 4/3): Inception's crop."""
    area = height * width * rng.uniform(_MIN_AREA, 1)
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    top = int(rng.integers(height - crop_height + 1))
    left = int(rng.integers(width - crop_width + 1))
    return top, left, crop_height, crop_width


def _jitter_colors(view_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation: each is affine in the color, so one product does all."""
    brightness, contrast, saturation = rng.uniform(1 - _JITTER, 1 + _JITTER, 3).tolist()
    pixels_1CHW = view_CHW[None].float()
    luma_C = _LUMA_C.to(view_CHW.device)
    mean_grey = luma_C @ pixels_1CHW.mean((0, 2, 3))
    mix_CC = saturation * torch.eye(3, device=luma_C.device) + (1 - saturation) * luma_C.expand(
        3, 3
    )
    matrix_CC = contrast * brightness * mix_CC
    offset_C = ((1 - contrast) * brightness * mean_grey).expand(3)
    jittered_1CHW = conv2d(pixels_1CHW, matrix_CC[:, :, None, None], offset_C)
    return jittered_1CHW.clamp_(0, 255)[0].to(torch.uint8)


def _erase(view_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    size = view_CHW.shape[-1]
    height, width = (max(1, round(size * rng.uniform(0.05, _MAX_ERASED_SIDE))) for _ in range(2))
    top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
    erased_CHW = view_CHW.clone()
    erased_CHW[:, top : top + height, left : left + width] = 128
    return erased_CHW


def _equalize(view_CHW: Tensor, magnitude: float) -> Tensor:
    """Blended in by `magnitude`: no camera gives the full effect."""
    equal_CHW = F.equalize(view_CHW)
    return torch.lerp(view_CHW.float(), equal_CHW.float(), magnitude).to(torch.uint8)


# As RandAugment (https://arxiv.org/abs/1909.13719), without its label-breaking extremes.
_DISTORTIONS: tuple[_Operation, ...] = (
    lambda view, by: F.rotate(view, 40 * by - 20, InterpolationMode.BILINEAR),
    lambda view, by: F.gaussian_blur(view, [5, 5], [0.1 + 1.4 * by]),
    lambda view, by: F.posterize(view, bits=4 + round(3 * by)),
    lambda view, by: F.adjust_saturation(view, 1 - by),
    lambda view, by: F.adjust_sharpness(view, 2 * by),
    _equalize,
)


def rand_augment(view_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Two random operations, possibly the same."""
    for index in rng.integers(len(OPERATIONS), size=_NUM_OPERATIONS):
        view_CHW = apply(view_CHW, list(OPERATIONS)[index], _MAGNITUDE, rng, is_wide=False)
    return view_CHW


def trivial_augment(view_CHW: Tensor, rng: np.random.Generator) -> Tensor:
    """One random operation at one of 31 magnitudes."""
    name = list(OPERATIONS)[int(rng.integers(len(OPERATIONS)))]
    magnitude = int(rng.integers(_NUM_MAGNITUDES)) / (_NUM_MAGNITUDES - 1)
    return apply(view_CHW, name, magnitude, rng, is_wide=True)


def apply(
    view_CHW: Tensor, name: str, magnitude: float, rng: np.random.Generator, *, is_wide: bool
) -> Tensor:
    """An operation at a magnitude in [0, 1] of its range, in a random direction."""
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


# Operation, range in RandAugment, range in TrivialAugmentWide, whether the sign is random.
# Ranges of translations: shares of the side (150 of 331 pixels), and pixels.
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
    "Posterize": (lambda view, by: F.posterize(view, bits=round(8 - by)), 4, 6, False),
    "Solarize": (lambda view, by: F.solarize(view, 255 * (1 - by)), 1, 1, False),
    "AutoContrast": (lambda view, _: F.autocontrast(view), 0, 0, False),
    "Equalize": (lambda view, _: F.equalize(view), 0, 0, False),
}
