"""What decoders make of the bytes of an image: its upright-to-be pixels, or why there are none.

Every call of a decoder goes through `_call`: whatever it raises rejects the image, while a bug of
this code still stops the run. What decoding may cost is checked before, by headers.
"""

import contextlib
import functools
import io
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base as ExifTag
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    TILELENGTH,
    TILEWIDTH,
    TiffImageFile,
)

from pipeline.dataset.schema import RejectReason

Pixels = NDArray[np.uint8]  # H W 3, RGB
P = ParamSpec("P")
T = TypeVar("T")

# Pillow opens more formats, some by running other programs.
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
# A camera's progressive JPEG has about 10; each scan costs a pass over all pixels.
_MAX_SCANS = 64
_PNG = b"\x89PNG\r\n\x1a\n"
# Text and colour profile, which Pillow inflates, and for whose size it refuses the picture.
_BESIDE_PIXELS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_MAX_SAMPLE_VALUE = 281  # tag of TIFF
# 16-bit samples that stay below hold fewer bits, which no header says: they would come out black.
_MIN_WHITE = 1 << 14


class UnusableImage(Exception):
    """An image that cannot be used; its message is the reason."""

    def __init__(self, reason: RejectReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@functools.cache
def formats() -> dict[str, tuple[str, ...]]:
    """Names of Pillow for the formats that are read, and their suffixes.

    HEIF is one of them where the package pillow-heif is installed.
    """
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        return _FORMATS | {"HEIF": (".heic", ".heif")}
    return _FORMATS


def image_suffixes() -> tuple[str, ...]:
    """Suffixes of the formats that are read, lower case, with their dot."""
    return tuple(suffix for suffixes in formats().values() for suffix in suffixes)


@contextlib.contextmanager
def open_image(image: bytes) -> Iterator[Image.Image]:
    """Reads only the header. Raises UnusableImage."""
    # Pillow warns about broken EXIF, which is ignored here, and large images, rejected here.
    with (
        warnings.catch_warnings(action="ignore"),
        _call(Image.open, io.BytesIO(image), formats=tuple(formats())) as picture,
    ):
        yield picture


def decoded_area(picture: Image.Image) -> int:
    """Pixels that decoding holds at once: those of the image, or of a tile if that is larger."""
    width, height = picture.size
    if isinstance(picture, TiffImageFile):
        tags = picture.tag_v2
        sides = (_call(tags.get, tag, 0) for tag in (TILEWIDTH, TILELENGTH))
        tile_width, tile_height = (side if isinstance(side, int) else 0 for side in sides)
        return max(width * height, tile_width * tile_height)
    return width * height


def read_pixels(picture: Image.Image, image: bytes, target: int) -> tuple[Pixels, bool]:
    """Pixels, and whether they come from a JPEG without faults. Raises UnusableImage.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, but not below `target` pixels: libjpeg
    scales while decoding, with SIMD code for these fractions only.
    """
    if picture.format in ("JPEG", "MPO") and _has_many_scans(image):
        raise UnusableImage(RejectReason.TOO_LARGE)
    if picture.format == "PNG" and not _has_sound_pixels(image):
        raise UnusableImage(RejectReason.UNREADABLE)
    if picture.format == "JPEG" and picture.mode in ("RGB", "L"):
        width, height = picture.size
        factor = next((f for f in (8, 4, 2) if min(width, height) >= f * target), 1)
        # It is strict; Pillow may still read the image.
        with contextlib.suppress(UnusableImage):
            pixels: Pixels = _call(
                simplejpeg.decode_jpeg,
                image,
                colorspace="RGB",
                min_height=-(-height // factor),
                min_width=-(-width // factor),
                min_factor=factor,
            )
            return pixels, True
    return _read_with_pillow(picture, image), False


def exif_orientation(picture: Image.Image) -> int:
    """1 to 8, 1 without EXIF; 0 if it is broken, so that it must not be passed on."""
    try:
        exif = _call(picture.getexif)
        orientation = _call(exif.get, ExifTag.Orientation, 1)
    except UnusableImage:
        return 0
    if not exif and "exif" in picture.info:
        return 0  # Pillow has found it damaged while reading the header, and dropped it
    return orientation if orientation in range(1, 9) else 0


def without_text(image: bytes) -> bytes | None:
    """A PNG without text and colour profile; None if it has neither, or is no PNG."""
    if not image.startswith(_PNG):
        return None
    chunks = (chunk for kind, chunk in _png_chunks(image) if kind not in _BESIDE_PIXELS)
    stripped = b"".join([_PNG, *chunks])
    return stripped if len(stripped) < len(image) else None


def _png_chunks(image: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The type of each chunk, and the chunk: length, type, data and CRC-32 of type and data."""
    view, at = memoryview(image), len(_PNG)
    while at < len(image):
        end = at + 12 + int.from_bytes(image[at : at + 4], "big")
        yield image[at + 4 : at + 8], view[at:end]
        at = end


def _has_sound_pixels(png: bytes) -> bool:
    """Whether the checksums of the pixels hold, which Pillow does not look at.

    It shows what it cannot decode as black. What is cut off it notices itself.
    """
    return all(
        zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        for kind, chunk in _png_chunks(png)
        if kind == b"IDAT" and len(chunk) == 12 + int.from_bytes(chunk[:4], "big")
    )


def _call(decoder: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function of a decoder returns; raises UnusableImage for whatever it raises."""
    try:
        return decoder(*args, **kwargs)
    except Image.DecompressionBombError:  # Pillow's own limit, 179 million pixels
        raise UnusableImage(RejectReason.TOO_LARGE) from None
    except Exception as error:
        is_cut_off = "truncated" in str(error).lower()
        reason = RejectReason.TRUNCATED if is_cut_off else RejectReason.UNREADABLE
        raise UnusableImage(reason) from error


def _has_many_scans(jpeg: bytes) -> bool:
    """Whether there are more scans than `_MAX_SCANS`, by the markers (ITU-T T.81, B.1.1.2)."""
    if jpeg.count(b"\xff\xda") <= _MAX_SCANS:
        return False
    at, num_scans = 2, 0
    while num_scans <= _MAX_SCANS and 0 <= (at := jpeg.find(b"\xff", at)) < len(jpeg) - 1:
        marker = jpeg[at + 1]
        if marker == 0xD9:  # end of image
            break
        if marker == 0xFF:  # fill
            at += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # a stuffed byte, or without parameters
            at += 2
        else:
            num_scans += marker == 0xDA
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return num_scans > _MAX_SCANS


def _read_with_pillow(picture: Image.Image, image: bytes) -> Pixels:
    """First frame; transparency on white; 16 bits scaled to 8. Raises UnusableImage."""
    has_deep_colours = _has_deep_colours(picture, image)
    _call(picture.load)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        return _read_deep_grey(picture)
    if picture.mode not in _MODES:
        raise UnusableImage(RejectReason.UNSUPPORTED_MODE)
    if has_deep_colours and _brightest(picture) < _MIN_WHITE >> 8:
        raise UnusableImage(RejectReason.UNSUPPORTED_MODE)
    if _call(lambda: picture.has_transparency_data):
        white = Image.new("RGBA", picture.size, "white")
        picture = _call(Image.alpha_composite, white, _call(picture.convert, "RGBA"))
    return np.array(_call(picture.convert, "RGB"))


def _read_deep_grey(picture: Image.Image) -> Pixels:
    """Grey of up to 16 bits to 8: by what the header says is white, 65535 if it says nothing."""
    grey = _call(np.asarray, picture).astype(np.uint32)
    white, brightest = _white_of(picture), int(grey.max(initial=0))
    if not brightest <= white <= 65535 or (white >= _MIN_WHITE > brightest):
        raise UnusableImage(RejectReason.UNSUPPORTED_MODE)
    scaled = (grey >> 8 if white == 65535 else grey * 255 // white).astype(np.uint8)
    if _is_negative(picture):
        scaled = ~scaled
    return np.repeat(scaled[..., None], 3, axis=2)


def _is_negative(picture: Image.Image) -> bool:
    """Whether white is zero, which Pillow heeds for 8 bits only."""
    if not isinstance(picture, TiffImageFile):
        return False
    return _call(picture.tag_v2.get, PHOTOMETRIC_INTERPRETATION) == 0


def _white_of(picture: Image.Image) -> int:
    """The largest value that samples of a grey image can have, by its header."""
    if not isinstance(picture, TiffImageFile):
        return 65535  # that of PNG; Pillow scales PGM to it
    most = _call(picture.tag_v2.get, _MAX_SAMPLE_VALUE)
    bits = _call(picture.tag_v2.get, BITSPERSAMPLE, (16,))
    by_bits = (1 << bits[0]) - 1 if isinstance(bits, tuple) and bits else 65535
    most = most[0] if isinstance(most, tuple) and most else most
    return most if isinstance(most, int) and 0 < most < by_bits else by_bits


def _has_deep_colours(picture: Image.Image, image: bytes) -> bool:
    """Whether samples have 16 bits, of which Pillow keeps the upper 8; before it loads them."""
    if picture.format == "PNG":
        return image[24] == 16  # in the header chunk, which Pillow has checked
    if isinstance(picture, TiffImageFile):
        bits = _call(picture.tag_v2.get, BITSPERSAMPLE, (8,))
        return isinstance(bits, tuple) and 16 in bits
    # A smaller maximum is scaled by Pillow.
    return isinstance(picture, PpmImageFile) and picture.tile[0].args == ("RGB", 65535)


def _brightest(picture: Image.Image) -> int:
    """The largest sample, without that of transparency."""
    colours = picture.mode.replace("A", "") or "L"
    bands = _call(picture.getextrema)
    pairs = bands if isinstance(bands[0], tuple) else (bands,)
    return max(int(most) for _, most in pairs[: len(colours)])
