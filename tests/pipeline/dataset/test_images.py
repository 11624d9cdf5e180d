import io

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from PIL import Image

from pipeline.config.output import OutputConfig
from pipeline.dataset.images import Decoded, decode_image, perceptual_hash
from pipeline.dataset.schema import READ_COLUMNS, ImageSettings, row_schema
from pipeline.worker.steps.decode import ADDS, READS, decode_batch
from support.corpus import (
    BLUE,
    GREEN,
    HEIGHT,
    RED,
    WHITE,
    WIDTH,
    encode,
    odd_but_usable,
    quadrants,
    see_through,
    unusable,
    with_orientation,
)
from support.tables import table_of

OUTPUT = OutputConfig(path="unused").image_settings


def decode(image: bytes, *, rotation: int = 0, settings: ImageSettings = OUTPUT) -> Decoded:
    found = decode_image(image, rotation=rotation, settings=settings)
    assert isinstance(found, Decoded), found
    return found


def pixels_of(decoded: Decoded) -> np.ndarray:
    pixels = simplejpeg.decode_jpeg(decoded.image)
    assert pixels.shape == (decoded.height, decoded.width, 3)
    return pixels


def corners(pixels: np.ndarray) -> np.ndarray:
    """Colours in the middle of the four quadrants, row by row."""
    height, width = pixels.shape[:2]
    rows, columns = [height // 4, -height // 4], [width // 4, -width // 4]
    return pixels[np.ix_(rows, columns)].reshape(4, 3).astype(int)


def rows_of(images: list[bytes | None], **columns: list[object]) -> pa.Table:
    schema = pa.schema([row_schema(1).field(name) for name in READ_COLUMNS])
    return table_of(len(images), schema, {"image": images, **columns})


@pytest.mark.parametrize("name", sorted(odd_but_usable()))
def test_odd_picture_comes_out_upright_in_its_colours(name: str) -> None:
    decoded = decode(odd_but_usable()[name])
    assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)
    difference = np.abs(corners(pixels_of(decoded)) - [RED, GREEN, BLUE, WHITE])
    assert difference.max() <= 12, corners(pixels_of(decoded))


@pytest.mark.parametrize("name", sorted(unusable()))
def test_unusable_picture_is_rejected_for_its_reason(name: str) -> None:
    image, reason = unusable()[name]
    assert decode_image(image, rotation=0, settings=OUTPUT) == reason


def test_every_cut_of_a_jpeg_is_rejected() -> None:
    jpeg = encode(quadrants())
    for size in range(0, len(jpeg) - 2, 7):
        found = decode_image(jpeg[:size], rotation=0, settings=OUTPUT)
        assert found in ("truncated", "unreadable"), f"cut at {size}: {found}"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)  # fmt: skip
    stored = quadrants() if method is None else quadrants().transpose(method)
    decoded = decode(with_orientation(stored, orientation))
    assert np.abs(corners(pixels_of(decoded)) - [RED, GREEN, BLUE, WHITE]).max() <= 12
    assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        (90, [GREEN, WHITE, RED, BLUE]),
        (180, [WHITE, BLUE, GREEN, RED]),
        (270, [BLUE, RED, WHITE, GREEN]),
    ],
)
def test_rotation_turns_counter_clockwise(rotation: int, expected: list[object]) -> None:
    decoded = decode(encode(quadrants(), quality=95), rotation=rotation)
    assert np.abs(corners(pixels_of(decoded)) - expected).max() <= 12
    assert (decoded.width == WIDTH) == (rotation == 180)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1)])
def test_image_of_one_row_is_turned(size: tuple[int, int], rotation: int) -> None:
    settings = ImageSettings(image_size=64)
    turned = decode(encode(Image.new("RGB", size), "PNG"), rotation=rotation, settings=settings)
    assert (turned.width, turned.height) == (size if rotation % 180 == 0 else size[::-1])


def test_sixteen_bit_mid_grey_stays_mid_grey() -> None:
    grey = Image.fromarray(np.full((64, 64), 32768, np.uint16))
    assert np.abs(pixels_of(decode(encode(grey, "PNG"))).astype(int) - 128).max() <= 1


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA"])
def test_transparent_half_is_white(mode: str) -> None:
    pixels = pixels_of(decode(see_through(mode)))
    assert pixels[:, -WIDTH // 3 :].min() >= 250
    assert pixels[:, : WIDTH // 3].mean() < 150


def test_grey_jpeg_becomes_rgb() -> None:
    decoded = decode(encode(quadrants().convert("L")))
    assert simplejpeg.decode_jpeg_header(decoded.image)[2:] == ("YCbCr", "420")


def test_small_upright_jpeg_keeps_its_bytes() -> None:
    jpeg = encode(quadrants(), quality=55, subsampling="4:4:4")
    assert decode(jpeg).image == jpeg


@pytest.mark.parametrize(
    "name", ["exif_rotated", "exif_that_is_no_tiff", "png_named_jpeg", "cmyk", "two_pictures_mpo"]
)
def test_other_pictures_are_encoded_anew(name: str) -> None:
    image = odd_but_usable()[name]
    decoded = decode(image)
    assert decoded.image != image
    assert simplejpeg.decode_jpeg_header(decoded.image)[2:] == ("YCbCr", "420")


def test_large_picture_is_shrunk_to_the_shorter_side_and_a_small_one_never_enlarged() -> None:
    large = decode(encode(quadrants(10)))
    assert (large.width, large.height) == (384, 256)
    small = decode(encode(quadrants(), "PNG"))
    assert (small.width, small.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("scale", [8, 9, 17, 33])  # 1/2, 1/2, 1/4 and 1/8 while decoding
def test_scaled_decoding_looks_like_resampling_alone(scale: int) -> None:
    rng = np.random.default_rng(scale)
    noise = rng.integers(0, 256, (12, 18, 3), dtype=np.uint8)
    size = (WIDTH * scale, HEIGHT * scale)
    jpeg = encode(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), quality=95)
    decoded = decode(jpeg)
    plain = Image.open(io.BytesIO(jpeg)).resize((384, 256), Image.Resampling.BILINEAR)
    error = pixels_of(decoded).astype(float) - np.asarray(plain, float)
    assert (decoded.width, decoded.height) == (384, 256)
    assert 10 * np.log10(255**2 / (error**2).mean()) > 35  # dB


def test_limits_are_the_config_s() -> None:
    jpeg = encode(quadrants())
    limits = {"too_large": {"max_pixels": 6143}, "too_small": {"min_side": 65},
              "bad_aspect": {"max_aspect": 1.49}}  # fmt: skip
    for reason, limit in limits.items():
        settings = OutputConfig(path="unused", **limit).image_settings
        assert decode_image(jpeg, rotation=0, settings=settings) == reason
    just_enough = ImageSettings(image_size=256, max_pixels=6144, min_side=64, max_aspect=1.5)
    assert decode(jpeg, settings=just_enough)


def test_perceptual_hash_survives_size_and_quality_but_not_a_mirror() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    photo = noise.resize((480, 360), Image.Resampling.BICUBIC)

    def hash_of(picture: Image.Image, **options: int) -> int:
        return decode(encode(picture, **options)).perceptual_hash

    original = hash_of(photo, quality=95)
    assert (original ^ hash_of(photo.resize((240, 180)), quality=40)).bit_count() <= 4
    mirrored = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert (original ^ hash_of(mirrored, quality=95)).bit_count() >= 16


def test_perceptual_hash_reads_brightness_from_left_to_right() -> None:
    ramp = np.repeat(np.linspace(0, 255, 90, dtype=np.uint8)[None, :, None], 80, axis=0)
    rising = np.ascontiguousarray(np.repeat(ramp, 3, axis=2))
    assert perceptual_hash(rising) == (1 << 64) - 1
    assert perceptual_hash(np.ascontiguousarray(rising[:, ::-1])) == 0


def test_batch_keeps_number_and_order_of_rows_and_says_why_each_is_rejected() -> None:
    jpeg, png = encode(quadrants()), encode(quadrants(), "PNG")
    rows = rows_of(
        [jpeg, b"", png, None, jpeg],
        uri=["a", "b", "c", "d", "e"],
        rotation=[None, None, 90, None, 0],
        reject_reason=[None, None, None, "conflicting_labels", None],
    )
    decoded = decode_batch(rows, OUTPUT)
    assert decoded.column_names == [*READ_COLUMNS, *ADDS]
    assert decoded.drop_columns([*READS, *ADDS]).equals(rows.drop_columns(list(READS)))
    reasons = [None, "unreadable", None, "conflicting_labels", None]
    assert decoded["reject_reason"].to_pylist() == reasons
    assert decoded["width"].to_pylist() == [WIDTH, None, HEIGHT, None, WIDTH]
    for name in ("image", *ADDS):
        is_null = [value is None for value in decoded[name].to_pylist()]
        assert is_null == [reason is not None for reason in reasons], name
    for name in decoded.column_names:
        assert decoded.schema.field(name).type == row_schema(1).field(name).type, name


def test_batch_of_one_or_many_gives_the_same_bytes() -> None:
    images = [*odd_but_usable().values(), encode(quadrants(10))]
    together = decode_batch(rows_of(images), OUTPUT)
    alone = pa.concat_tables(decode_batch(rows_of([image]), OUTPUT) for image in images)
    assert together.equals(alone.combine_chunks())


def test_empty_batch_has_all_columns() -> None:
    assert decode_batch(rows_of([]), OUTPUT).column_names == [*READ_COLUMNS, *ADDS]


def test_bug_is_not_a_bad_sample() -> None:
    with pytest.raises(AssertionError, match="45"):
        decode_image(encode(quadrants()), rotation=45, settings=OUTPUT)
