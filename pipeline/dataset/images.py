"""Decodes images and makes each an upright RGB JPEG, its shorter side at most `image_size`.

Or gives the reason to reject it.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.dataset.decoders import (
    Pixels,
    UnusableImage,
    decoded_area,
    exif_orientation,
    open_image,
    read_pixels,
    without_text,
)
from pipeline.dataset.resampling import resize_pixels
from pipeline.dataset.schema import ImageSettings, RejectReason

_MAX_JPEG_SIDE = 65_500  # of libjpeg
# EXIF orientation: whether to mirror left to right, then quarter turns counter-clockwise.
_ORIENTATIONS = {
    2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3),
    8: (False, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """A usable image as it goes into a shard."""

    image: bytes
    width: int
    height: int
    perceptual_hash: int


def decode_image(image: bytes, *, rotation: int, settings: ImageSettings) -> Decoded | RejectReason:
    """Decodes an image or gives a reason to reject it; `rotation` in degrees counter-clockwise.

    An upright RGB JPEG that is small enough keeps its bytes: encoding again would cost quality.
    """
    try:
        jpeg, pixels = upright_jpeg(image, rotation=rotation, settings=settings)
    except UnusableImage as rejected:
        return rejected.reason
    height, width = pixels.shape[:2]
    return Decoded(jpeg, width, height, perceptual_hash(pixels))


def upright_jpeg(image: bytes, *, rotation: int, settings: ImageSettings) -> tuple[bytes, Pixels]:
    """An image as it goes into a shard, and the pixels it was made of. Raises UnusableImage."""
    pixels, is_unchanged = _read_any_upright(image, rotation, settings)
    if is_unchanged:
        return image, pixels
    _check_fits_jpeg(pixels.shape[1], pixels.shape[0])
    # Named, because simplejpeg's default is 4:4:4: larger and slower, hardly better.
    jpeg = simplejpeg.encode_jpeg(
        pixels, quality=settings.jpeg_quality, colorspace="RGB", colorsubsampling="420"
    )
    return jpeg, pixels


def _read_any_upright(image: bytes, rotation: int, settings: ImageSettings) -> tuple[Pixels, bool]:
    """`_read_upright`; what a PNG has beside its pixels does not cost the pixels."""
    try:
        return _read_upright(image, rotation, settings)
    except UnusableImage as rejected:
        plain = without_text(image) if rejected.reason == RejectReason.UNREADABLE else None
        if plain is None:
            raise
    return _read_upright(plain, rotation, settings)


def _read_upright(image: bytes, rotation: int, settings: ImageSettings) -> tuple[Pixels, bool]:
    """Upright pixels of at most `image_size`, and whether `image` holds exactly these."""
    with open_image(image) as picture:
        _check_size(picture, settings)
        pixels, is_sound_jpeg = read_pixels(picture, image, settings.image_size)
        orientation = exif_orientation(picture)
        is_rgb, shorter = picture.mode == "RGB", min(picture.size)
    assert rotation % 90 == 0, f"rotation {rotation} is not a multiple of 90"
    is_mirrored, quarter_turns = _ORIENTATIONS.get(orientation, (False, 0))
    pixels = _shrink(pixels, settings.image_size)
    # Copied: numpy takes a turned row of pixels for contiguous, though its stride is negative.
    pixels = np.rot90(
        pixels[:, ::-1] if is_mirrored else pixels, quarter_turns + rotation // 90
    ).copy()
    is_upright = orientation == 1 and rotation % 360 == 0
    is_unchanged = is_sound_jpeg and is_rgb and is_upright and shorter <= settings.image_size
    return pixels, is_unchanged


def perceptual_hash(pixels: Pixels) -> int:
    """64-bit difference hash: which of 9x8 grey cells is brighter than its left neighbour.

    Krawetz, "Kind of Like That" (2013). Similar images differ in few bits.
    """
    # Luma in thousandths (ITU-R BT.601), in integers so that it is the same on every machine.
    grey = resize_pixels(pixels, 8, 9).astype(np.int32) @ np.array([299, 587, 114])
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def _check_size(picture: Image.Image, settings: ImageSettings) -> None:
    shorter, longer = sorted(picture.size)
    if decoded_area(picture) > settings.max_pixels:
        raise UnusableImage(RejectReason.TOO_LARGE)
    if shorter < settings.min_side:
        raise UnusableImage(RejectReason.TOO_SMALL)
    if longer > shorter * settings.max_aspect:
        raise UnusableImage(RejectReason.BAD_ASPECT)


def _check_fits_jpeg(width: int, height: int) -> None:
    if max(width, height) > _MAX_JPEG_SIDE:
        raise UnusableImage(RejectReason.BAD_ASPECT)


def _shrink(pixels: Pixels, target: int) -> Pixels:
    """Scales the shorter side down to `target`; never enlarges."""
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if shorter <= target:
        return pixels
    return resize_pixels(pixels, round(height * target / shorter), round(width * target / shorter))
