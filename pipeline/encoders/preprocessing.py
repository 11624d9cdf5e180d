"""The square of an image that an encoder sees.

Shapes: C H W image.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.dataset.images import upright_jpeg
from pipeline.dataset.resampling import Interpolation, resize_pixels
from pipeline.dataset.schema import ImageSettings

# Longer side to shorter side, of what is resized: a line of 60,000 x 2 pixels, enlarged to a
# shorter side of 224, would take minutes and gigabytes, all but its middle to be cut off.
_MAX_ASPECT = 16


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to `resize_size`, central square of `image_size` (pixels), then mean and std.

    `squash` brings both sides to `resize_size`, whatever the aspect.
    """

    image_size: int
    resize_size: int
    interpolation: Interpolation  # antialiased
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_mode: Literal["center", "squash"] = "center"


def decode_rgb(image: bytes) -> NDArray[np.uint8]:
    """RGB pixels HWC of an image of a data set, which is an upright RGB JPEG."""
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(image)
    return pixels


def crop_pixels(image: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The uint8 CHW square of an image of a data set that an encoder sees; deterministic."""
    return crop_decoded(decode_rgb(image), preprocessing)


def crop_any_image(image: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """`crop_pixels` for an image of any format, after the decoding and resizing of a build.

    Raises UnusableImage.
    """
    settings = ImageSettings(image_size=preprocessing.resize_size)
    jpeg, _ = upright_jpeg(image, rotation=0, settings=settings)
    return crop_pixels(jpeg, preprocessing)


def crop_decoded(pixels_HWC: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """`crop_pixels` of decoded pixels."""
    if preprocessing.crop_mode == "center":
        pixels_HWC = _middle(pixels_HWC)
    height, width = size_before_crop(pixels_HWC.shape[0], pixels_HWC.shape[1], preprocessing)
    pixels_HWC = resize_pixels(pixels_HWC, height, width, preprocessing.interpolation)
    side = preprocessing.image_size
    top, left = (height - side) // 2, (width - side) // 2
    square_HWC = pixels_HWC[top : top + side, left : left + side]
    return np.ascontiguousarray(square_HWC.transpose(2, 0, 1))


def _middle(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As it is, or the middle of a picture that is too long."""
    height, width = pixels_HWC.shape[:2]
    most = _MAX_ASPECT * min(height, width)
    top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
    return pixels_HWC[top : height - top, left : width - left]


def size_before_crop(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width of an image that the square is cut out of."""
    if preprocessing.crop_mode == "squash":
        return preprocessing.resize_size, preprocessing.resize_size
    scale = preprocessing.resize_size / min(height, width)
    return round(height * scale), round(width * scale)
