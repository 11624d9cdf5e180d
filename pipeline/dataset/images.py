"""Decodes images and makes each an upright RGB JPEG, its shorter side at most `image_size`.

Or gives the reason to reject it. Only the errors named here reject an image; any other is a bug.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base as ExifTag

from pipeline.dataset.schema import ImageSettings, RejectReason

Pixels = NDArray[np.uint8]  # H W 3, RGB

# Pillow opens more formats, some by running other programs.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
# Errors that Pillow raises for damaged data. Its header readers turn others into
# UnidentifiedImageError, which is an OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
# EXIF orientation: whether to mirror left to right, then quarter turns counter-clockwise.
_ORIENTATIONS = {
    2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3),
    8: (False, 1),
}  # fmt: skip


class UnusableImage(Exception):
    """An image that cannot be used; its message is the reason."""

    def __init__(self, reason: RejectReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


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
        pixels, is_unchanged = _read_upright(image, rotation, settings)
    except UnusableImage as rejected:
        return rejected.reason
    if not is_unchanged:
        # Named, because simplejpeg's default is 4:4:4: larger and slower, hardly better.
        image = simplejpeg.encode_jpeg(
            pixels, quality=settings.jpeg_quality, colorspace="RGB", colorsubsampling="420"
        )
    height, width = pixels.shape[:2]
    return Decoded(image, width, height, perceptual_hash(pixels))


def _read_upright(image: bytes, rotation: int, settings: ImageSettings) -> tuple[Pixels, bool]:
    """Upright pixels of at most `image_size`, and whether `image` holds exactly these."""
    # Pillow warns about broken EXIF, which is ignored here, and large images, rejected here.
    with warnings.catch_warnings(action="ignore"), _open(image) as picture:
        _check_size(*picture.size, settings)
        pixels, is_sound_jpeg = _read_pixels(picture, image, settings.image_size)
        orientation = _exif_orientation(picture)
        is_rgb, shorter = picture.mode == "RGB", min(picture.size)
    assert rotation % 90 == 0, f"rotation {rotation} is not a multiple of 90"
    is_mirrored, quarter_turns = _ORIENTATIONS.get(orientation, (False, 0))
    pixels = _shrink(pixels, settings.image_size)
    pixels = np.rot90(pixels[:, ::-1] if is_mirrored else pixels, quarter_turns + rotation // 90)
    is_upright = orientation == 1 and rotation % 360 == 0
    is_unchanged = is_sound_jpeg and is_rgb and is_upright and shorter <= settings.image_size
    return np.ascontiguousarray(pixels), is_unchanged


def perceptual_hash(pixels: Pixels) -> int:
    """64-bit difference hash: which of 9x8 grey cells is brighter than its left neighbour.

    Krawetz, "Kind of Like That" (2013). Similar images differ in few bits.
    """
    # Luma in thousandths (ITU-R BT.601), in integers so that it is the same on every machine.
    grey = _resize(pixels, 8, 9).astype(np.int32) @ np.array([299, 587, 114])
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def _open(image: bytes) -> Image.Image:
    """Reads only the header."""
    try:
        return Image.open(io.BytesIO(image), formats=_FORMATS)
    except Image.DecompressionBombError:  # Pillow's own limit, 179 million pixels
        raise UnusableImage(RejectReason.TOO_LARGE) from None
    except _DAMAGED as error:
        raise _rejected_as_damaged(error) from None


def _check_size(width: int, height: int, settings: ImageSettings) -> None:
    shorter, longer = sorted((width, height))
    if width * height > settings.max_pixels:
        raise UnusableImage(RejectReason.TOO_LARGE)
    if shorter < settings.min_side:
        raise UnusableImage(RejectReason.TOO_SMALL)
    if longer > shorter * settings.max_aspect:
        raise UnusableImage(RejectReason.BAD_ASPECT)


def _read_pixels(picture: Image.Image, image: bytes, target: int) -> tuple[Pixels, bool]:
    """Pixels, and whether they come from a JPEG without faults.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, but not below `target` pixels: libjpeg
    scales while decoding, with SIMD code for these fractions only.
    """
    if picture.format == "JPEG" and picture.mode in ("RGB", "L"):
        width, height = picture.size
        factor = next((f for f in (8, 4, 2) if min(width, height) >= f * target), 1)
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                image,
                colorspace="RGB",
                min_height=-(-height // factor),
                min_width=-(-width // factor),
                min_factor=factor,
            )
            return pixels, True
        except ValueError:
            pass  # it is strict; Pillow may still read the image
    return _read_with_pillow(picture), False


def _read_with_pillow(picture: Image.Image) -> Pixels:
    """First frame; transparency on white; 16 bits cut to 8."""
    try:
        picture.load()
        if picture.mode.startswith("I;16"):
            return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        if picture.mode not in _MODES:
            raise UnusableImage(RejectReason.UNSUPPORTED_MODE)
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return np.array(picture.convert("RGB"))
    except _DAMAGED as error:
        raise _rejected_as_damaged(error) from None


def _exif_orientation(picture: Image.Image) -> int:
    """1 to 8, 1 without EXIF; 0 if it is broken, so that it must not be passed on."""
    try:
        exif = picture.getexif()
        orientation = exif.get(ExifTag.Orientation, 1)
    except _DAMAGED:
        return 0
    if not exif and "exif" in picture.info:
        return 0  # Pillow has found it damaged while reading the header, and dropped it
    return orientation if orientation in range(1, 9) else 0


def _rejected_as_damaged(error: Exception) -> UnusableImage:
    is_cut_off = "truncated" in str(error).lower()
    return UnusableImage(RejectReason.TRUNCATED if is_cut_off else RejectReason.UNREADABLE)


def _shrink(pixels: Pixels, target: int) -> Pixels:
    """Scales the shorter side down to `target`; never enlarges."""
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if shorter <= target:
        return pixels
    return _resize(pixels, round(height * target / shorter), round(width * target / shorter))


def _resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Antialiased bilinear."""
    # HWC memory viewed as NCHW is channels_last, for which torch has a fast uint8 kernel.
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None],
        size=(height, width),
        mode="bilinear",
        antialias=True,
    )
    return resized[0].permute(1, 2, 0).contiguous().numpy()
