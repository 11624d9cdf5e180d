"""Bytes that a decoder refuses, gets wrong or drowns in: each is one reject, or its pixels."""

import importlib.util
import io
import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import psutil
import pytest
import simplejpeg
from PIL import Image, ImageCms, PngImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pipeline.dataset import decoders, images
from pipeline.dataset.decoders import image_suffixes
from pipeline.dataset.images import Decoded, decode_image
from pipeline.dataset.schema import ImageSettings
from support.corpus import encode, quadrants

SETTINGS = ImageSettings(image_size=256)
RAMP = np.tile(np.linspace(0, 255, 96, dtype=np.uint16), (64, 1))


def decode(image: bytes) -> Decoded | str:
    return decode_image(image, rotation=0, settings=SETTINGS)


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(colour_type: int, *, bits: int = 8, rows: bytes, extra: bytes = b"") -> bytes:
    """64x64 pixels; `rows` without filter bytes."""
    width = len(rows) // 64
    filtered = b"".join(b"\0" + rows[i * width : (i + 1) * width] for i in range(64))
    header = struct.pack(">IIBBBBB", 64, 64, bits, colour_type, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(filtered))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def tiff_with_tile(side: int) -> bytes:
    """An image of 100x100 pixels in one deflated tile."""
    packed = zlib.compress(bytes(side * side), 1)
    tags = {256: 100, 257: 100, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 0}
    tags[325] = len(packed)
    at = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, at if tag == 324 else value) for tag, value in tags.items()
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed


def progressive(num_scans: int) -> bytes:
    """A progressive JPEG of 2000x2000 whose last scan comes `num_scans` times."""
    jpeg = encode(Image.new("L", (2000, 2000), 128), progressive=True)
    first = jpeg.rindex(b"\xff\xda")
    return jpeg[:first] + jpeg[first:-2] * num_scans + b"\xff\xd9"


def mean_of(found: Decoded | str) -> float:
    assert isinstance(found, Decoded), found
    return float(simplejpeg.decode_jpeg(found.image).mean())


def deep_tiff(grey: np.ndarray, **tags: int) -> bytes:
    file, directory = io.BytesIO(), ImageFileDirectory_v2()
    for name, value in tags.items():
        directory[{"white": 281, "photometric": 262}[name]] = value
    Image.fromarray(grey.astype(np.uint16)).save(file, "TIFF", tiffinfo=directory)
    return file.getvalue()


def test_png_whose_pixels_are_partly_zeros_is_a_reject() -> None:
    """As a download leaves it that was cut off: Pillow shows the rest as black."""
    whole = encode(quadrants(8), "PNG")
    half = len(whole) // 2
    assert isinstance(decode(whole), Decoded)
    assert decode(whole[:half] + bytes(half)) == "unreadable"
    assert decode(whole[:half]) == "truncated"


def test_png_of_palette_type_without_palette_is_one_reject() -> None:
    assert decode(png(3, rows=bytes(64 * 64))) == "unreadable"


def test_whatever_a_decoder_raises_is_a_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (TypeError, KeyError, AssertionError, RecursionError, MemoryError):

        def fail(*_: object, error: type[Exception] = error, **__: object) -> None:
            raise error("from the decoder")

        monkeypatch.setattr(decoders.Image, "open", fail)
        assert decode(encode(quadrants())) == "unreadable"


def test_bug_after_decoding_is_no_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr(images, "_shrink", fail)
    with pytest.raises(KeyError, match="ours"):
        decode(encode(quadrants()))


def text(kind: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    if kind == "itxt":
        info.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    else:
        info.add_text("workflow", "x" * 3_000_000, zip=kind == "ztxt")
    return encode(quadrants(), "PNG", pnginfo=info)


def profile() -> bytes:
    small = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return encode(quadrants(), "PNG", icc_profile=small + bytes(3_000_000))


@pytest.mark.parametrize(
    "make", [lambda: text("itxt"), lambda: text("ztxt"), lambda: text("text"), profile]
)
def test_png_with_much_text_or_a_large_profile_gives_its_pixels(make: Callable[[], bytes]) -> None:
    found, plain = decode(make()), decode(encode(quadrants(), "PNG"))
    assert isinstance(found, Decoded)
    assert found == plain


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tiff_with_tile(20_000), "too_large"),
        (lambda: progressive(500), "too_large"),
        (lambda: encode(Image.new("L", (70_000, 40)), "PNG"), "bad_aspect"),
        (
            lambda: png(2, rows=bytes(64 * 64 * 3), extra=chunk(b"iCCP", b"a\0\0" + b"\xff" * 9)),
            None,
        ),
    ],
)
def test_cost_of_decoding_is_bounded(make: Callable[[], bytes], reason: str | None) -> None:
    image = make()
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    found = decode(image)
    assert time.monotonic() - began < 5
    assert psutil.Process().memory_info().rss - before < 200 << 20
    assert isinstance(found, Decoded) if reason is None else found == reason


def test_usual_tiles_and_scans_are_read() -> None:
    assert isinstance(decode(tiff_with_tile(256)), Decoded)
    assert isinstance(decode(progressive(1)), Decoded)
    # Not a scan: what stands in the metadata or after the end.
    metadata = b"\xff\xe1" + struct.pack(">H", 2 + 400) + b"\xff\xda" * 200
    jpeg = encode(quadrants())
    assert isinstance(decode(jpeg[:2] + metadata + jpeg[2:] + b"\xff\xda" * 200), Decoded)


def rgb_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a colour, all three alike."""
    rows = np.repeat(values[:64, :64].astype(">u2")[..., None], 3, axis=2).tobytes()
    return png(2, bits=16, rows=rows)


@pytest.mark.parametrize(
    "image",
    [
        encode(Image.fromarray(RAMP * 257), "PNG"),
        encode(Image.fromarray(RAMP * 257), "TIFF"),
        deep_tiff(RAMP * 16, white=4095),
        deep_tiff(RAMP, white=255),
        deep_tiff(65535 - RAMP * 257, photometric=0),
        b"P5 96 64\n4095\n" + (RAMP * 16).astype(">u2").tobytes(),
        b"P5 96 64\n65535\n" + (RAMP * 257).astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "12-bit-tiff", "8-bit-tiff", "negative-tiff", "12-bit-pgm", "pgm"],
)
def test_sixteen_bits_are_scaled_by_what_the_file_says(image: bytes) -> None:
    assert abs(mean_of(decode(image)) - RAMP.mean()) < 2


@pytest.mark.parametrize(
    "image",
    [
        encode(Image.fromarray(RAMP), "PNG"),
        encode(Image.fromarray(RAMP * 16), "PNG"),
        deep_tiff(RAMP * 16),
        deep_tiff(RAMP * 16, white=255),
        b"P5 96 64\n65535\n" + (RAMP * 16).astype(">u2").tobytes(),
        b"P6 32 64\n65535\n" + (RAMP * 16).astype(">u2").tobytes(),
        rgb_png(RAMP * 16),
        rgb_png(RAMP),
    ],
)
def test_fewer_bits_in_sixteen_that_no_header_tells_are_refused_not_black(image: bytes) -> None:
    assert decode(image) == "unsupported_mode"


def test_colours_of_sixteen_bits_are_read() -> None:
    assert abs(mean_of(decode(rgb_png(RAMP * 257))) - RAMP[:, :64].mean()) < 2


@pytest.mark.parametrize("name", ["AVIF", "PPM"])
def test_further_formats_are_read(name: str) -> None:
    assert isinstance(decode(encode(quadrants(), name)), Decoded)


def test_heif_is_read_where_its_plugin_is() -> None:
    is_installed = importlib.util.find_spec("pillow_heif") is not None
    assert (".heic" in image_suffixes()) == is_installed
    if is_installed:
        assert isinstance(decode(encode(quadrants(), "HEIF")), Decoded)
