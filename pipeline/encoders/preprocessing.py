"""The square of an image that an encoder sees.

Shapes: C H W image.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.dataset.decoders import UnusableImage
from pipeline.dataset.images import Decoded, decode_image
from pipeline.dataset.schema import ImageSettings


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to `resize_size`, central square of `image_size` (pixels), then mean and std.

    `squash` brings both sides to `resize_size`, whatever the aspect.
    """

    image_size: int
    resize_size: int
    interpolation: str  # "bilinear" or "bicubic", antialiased
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_mode: Literal["center", "squash"] = "center"


def decode_rgb(image: bytes) -> NDArray[np.uint8]:
    """RGB pixels HWC of an image of a data set, which is an upright RGB JPEG."""
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(image)
    return pixels


def crop_pixels(image: bytes, preprocessing: Preprocessing) -> Tensor:
    """The uint8 CHW square of an image of a data set that an encoder sees; deterministic."""
    return crop_decoded(torch.from_numpy(decode_rgb(image)), preprocessing)


def crop_any_image(image: bytes, preprocessing: Preprocessing) -> Tensor:
    """`crop_pixels` for an image of any format, after the decoding and resizing of a build.

    Raises UnusableImage.
    """
    settings = ImageSettings(image_size=preprocessing.resize_size)
    decoded = decode_image(image, rotation=0, settings=settings)
    if not isinstance(decoded, Decoded):
        raise UnusableImage(decoded)
    return crop_pixels(decoded.image, preprocessing)


def crop_decoded(pixels_HWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """`crop_pixels` of decoded pixels."""
    pixels_CHW = pixels_HWC.permute(2, 0, 1)  # a view: the resampler is fastest channels last
    height, width = pixels_CHW.shape[1:]
    if preprocessing.crop_mode == "squash":
        size = (preprocessing.resize_size, preprocessing.resize_size)
    else:
        scale = preprocessing.resize_size / min(height, width)
        size = (round(height * scale), round(width * scale))
    if size != (height, width):
        pixels_CHW = interpolate(
            pixels_CHW[None], size=size, mode=preprocessing.interpolation, antialias=True
        )[0]
    top, left = ((side - preprocessing.image_size) // 2 for side in pixels_CHW.shape[1:])
    side = preprocessing.image_size
    return pixels_CHW[:, top : top + side, left : left + side].contiguous()
