"""Odd and damaged images and tars, made here so that no binary lies in the repository."""

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.ExifTags import Base as ExifTag

WIDTH, HEIGHT = 96, 64
RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 160, 60), (40, 60, 200), (255, 255, 255)


def quadrants(scale: int = 1) -> Image.Image:
    """Red and green above blue and white: no turn or mirror image looks the same."""
    pixels = np.empty((HEIGHT * scale, WIDTH * scale, 3), np.uint8)
    middle_y, middle_x = HEIGHT * scale // 2, WIDTH * scale // 2
    pixels[:middle_y, :middle_x], pixels[:middle_y, middle_x:] = RED, GREEN
    pixels[middle_y:, :middle_x], pixels[middle_y:, middle_x:] = BLUE, WHITE
    return Image.fromarray(pixels)


def encode(picture: Image.Image, image_format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def with_orientation(picture: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTag.Orientation] = orientation
    return encode(picture, exif=exif, quality=95)


def png_header(width: int, height: int) -> bytes:
    """A PNG of 57 bytes that claims any size: a decompression bomb, were it decoded."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IEND", b"")]
    chunks.insert(1, (b"IDAT", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def see_through(mode: str) -> bytes:
    """A PNG whose right half is fully transparent black, the left a solid colour."""
    alpha = Image.new("L", (WIDTH, HEIGHT), 255)
    alpha.paste(0, (WIDTH // 2, 0, WIDTH, HEIGHT))
    if mode == "P":
        picture = Image.new("P", (WIDTH, HEIGHT), 0)
        picture.putpalette([*RED, 0, 0, 0])
        picture.paste(1, (WIDTH // 2, 0, WIDTH, HEIGHT))
        return encode(picture, "PNG", transparency=1)
    picture = Image.new("RGB", (WIDTH, HEIGHT), RED).convert(mode[:-1])
    picture.paste(0, (WIDTH // 2, 0, WIDTH, HEIGHT))
    picture.putalpha(alpha)
    return encode(picture, "PNG")


def animated_gif() -> bytes:
    frames = [quadrants(), Image.new("RGB", (WIDTH, HEIGHT), "black")]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def broken_exif(tiff: bytes) -> bytes:
    return encode(quadrants(), exif=b"Exif\x00\x00" + tiff, quality=95)


def odd_but_usable() -> dict[str, bytes]:
    """Pictures of the four quadrants that a careless reader would refuse or get wrong."""
    picture = quadrants()
    return {
        "jpeg": encode(picture, quality=95),
        "progressive": encode(picture, quality=95, progressive=True),
        "cmyk": encode(picture.convert("CMYK"), quality=95),
        "exif_rotated": with_orientation(picture.rotate(90, expand=True), 6),
        "exif_that_is_no_tiff": broken_exif(b"?" * 40),
        "exif_cut_off": broken_exif(b"II*\x00\x08\x00\x00\x00\xff\xff\x12\x01\x03\x00"),
        "exif_at_a_wild_offset": broken_exif(b"II*\x00\xff\xff\xff\x00\x01\x00"),
        "png_named_jpeg": encode(picture, "PNG"),
        "palette_png": encode(picture.quantize(8), "PNG"),
        "webp": encode(picture, "WEBP", quality=95),
        "animated_gif": animated_gif(),
        "bmp": encode(picture, "BMP"),
        "tiff": encode(picture, "TIFF"),
        "two_pictures_mpo": encode(picture, "MPO", save_all=True, append_images=[picture]),
    }


def unusable() -> dict[str, tuple[bytes, str]]:
    """Bytes and the reason for which they are rejected."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT * 4, WIDTH * 4, 3), np.uint8)
    jpeg, png = encode(quadrants(4)), encode(Image.fromarray(noise), "PNG")
    return {
        "zero_bytes": (b"", "unreadable"),
        "text_named_jpg": (b"404 Not Found\n" * 20, "unreadable"),
        "jpeg_cut_in_half": (jpeg[: len(jpeg) // 2], "truncated"),
        "png_cut_in_half": (png[: len(png) // 2], "truncated"),
        "png_with_a_wrong_byte": (png[:200] + bytes([png[200] ^ 1]) + png[201:], "unreadable"),
        "one_pixel": (encode(Image.new("RGB", (1, 1)), "PNG"), "too_small"),
        "bomb": (png_header(30_000, 30_000), "too_large"),
        "over_the_limit": (png_header(9_000, 8_000), "too_large"),
        "strip": (encode(Image.new("RGB", (640, 40))), "bad_aspect"),
        "float_tiff": (encode(Image.new("F", (64, 64)), "TIFF"), "unsupported_mode"),
        "lab_tiff": (encode(Image.new("LAB", (64, 64)), "TIFF"), "unsupported_mode"),
    }


def tar_of(members: Iterable[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    path.write_bytes(tar_of(members, mode))
    return path


class CountingFile(io.BytesIO):
    """Counts the bytes that are read of it."""

    num_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.num_read += len(data)
        return data
