"""Pictures of a data set, small and inside a page."""

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from pipeline import storage
from pipeline.errors import BadShard

_JPEG = b"\xff\xd8"  # how all images of a data set begin


def read_from_tar(dataset: str, row: Mapping[str, Any]) -> bytes:
    """The JPEG at a row's `shard`, `tar_offset` and `tar_size`; reads no more than that range.

    Raises BadShard where there is none.
    """
    tar = storage.join(dataset, row["shard"])
    image = storage.read_range(tar, row["tar_offset"], row["tar_size"])
    if not image.startswith(_JPEG):
        raise BadShard(f"{tar}: no image where {row['key']} should be; run `infineg verify`")
    return image


def small_picture(dataset: str, row: Mapping[str, Any], side: int) -> bytes:
    """The `thumbnail` of a row's picture. Raises BadShard where there is none, or a broken one."""
    image = read_from_tar(dataset, row)
    try:
        return thumbnail(image, side)
    except (OSError, SyntaxError, ValueError) as error:  # of Pillow
        tar = storage.join(dataset, row["shard"])
        raise BadShard(
            f"{tar}: the image of {row['key']} is damaged ({error}); run `infineg verify`"
        ) from None


def thumbnail(image: bytes, side: int) -> bytes:
    """A JPEG of at most `side` by `side` pixels."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(image)) as picture:
        picture.draft("RGB", (side, side))
        picture.thumbnail((side, side))
        picture.convert("RGB").save(small, "JPEG", quality=80)
    return small.getvalue()


def as_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
