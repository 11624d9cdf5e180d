"""Which columns of a table hold the image and what is known of it, and the bytes of an image.

An image is bytes, or an address as text, or a struct of both as Hugging Face `datasets` stores it
(https://huggingface.co/docs/datasets/about_dataset_features): `bytes` null means to read `path`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.sources.readers import tars
from pipeline.sources.readers.files import read_named_image

_log = logging.getLogger(__name__)

# How surely a column of a type holds images; a text may also be an address.
Holds = Literal["images", "texts", "other"]
Row = Mapping[str, Any]

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
_LABEL_NAMES = ("label", "labels", "fine_label")


class ColumnSettings(Protocol):
    """Params that name columns; None is the column of a usual name, where there is one."""

    @property
    def image_column(self) -> str | None: ...
    @property
    def label_column(self) -> str | None: ...
    @property
    def license_column(self) -> str | None: ...
    @property
    def author_column(self) -> str | None: ...
    @property
    def group_column(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns; None where there is none."""

    image: str
    label: str | None
    license: str | None
    author: str | None
    group: str | None

    @property
    def names(self) -> list[str]:
        named = (self.image, self.label, self.license, self.author, self.group)
        return list(dict.fromkeys(name for name in named if name is not None))


def holds(kind: pa.DataType) -> Holds:
    """What a column of this Arrow type may hold."""
    if pa.types.is_dictionary(kind):
        return holds(kind.value_type)
    if pa.types.is_struct(kind):
        names = {field.name for field in kind}
        return "images" if names & {"bytes", "path"} else "other"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "images"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "texts"
    return "other"


def choose_columns(settings: ColumnSettings, columns: Mapping[str, Holds], where: str) -> Columns:
    """The columns named, else those of usual names; raises ConfigError where that fails."""
    image = _named("image_column", settings.image_column, columns, where)
    if image is not None and columns[image] == "other":
        raise ConfigError(
            f"{where}: column {image!r} holds neither bytes nor addresses; "
            f"check `params.image_column`; {_those_with_images(columns)}"
        )
    return Columns(
        image=image or _find_image(columns, where),
        label=_named("label_column", settings.label_column, columns, where)
        or next((name for name in _LABEL_NAMES if name in columns), None),
        license=_named("license_column", settings.license_column, columns, where)
        or _usual("license", columns),
        author=_named("author_column", settings.author_column, columns, where)
        or _usual("author", columns),
        group=_named("group_column", settings.group_column, columns, where),
    )


def _named(field: str, name: str | None, columns: Mapping[str, Holds], where: str) -> str | None:
    if name is not None and name not in columns:
        raise ConfigError(
            f"{where}: no column {name!r}; check `params.{field}`; there are {', '.join(columns)}"
        )
    return name


def _usual(name: str, columns: Mapping[str, Holds]) -> str | None:
    return name if columns.get(name) == "texts" else None


def _find_image(columns: Mapping[str, Holds], where: str) -> str:
    """A usual name, or the only column of images. Never a text of another name: it might be any
    address, and reading it would fetch what nobody asked for."""
    sure = [name for name, kind in columns.items() if kind == "images"]
    lowered = {name.lower(): name for name in reversed(list(columns))}
    usual = [lowered[name] for name in _IMAGE_NAMES if name in lowered]
    for name in usual:
        if name in sure:
            return name
    if len(sure) == 1:
        return sure[0]
    for name in usual:
        if columns[name] == "texts":
            return name
    raise ConfigError(
        f"{where}: which column is the image? set `params.image_column`; "
        f"{_those_with_images(columns)}"
    )


def _those_with_images(columns: Mapping[str, Holds]) -> str:
    return "there are " + ", ".join(f"{name} ({kind})" for name, kind in columns.items())


def image_bytes(value: object, folder: str) -> bytes:
    """Encoded bytes of one value of an image column; b"" where there are none.

    `folder` is the table's own: relative paths start there.
    """
    content, path = value, value
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path")
    if isinstance(content, bytes) and content:
        if len(content) <= tars.MAX_MEMBER_BYTES:
            return content
        _log.warning("%s: an image of %d bytes, not taken", folder, len(content))
        return b""
    if not isinstance(path, str) or not path:
        return b""
    return read_named_image(path, folder)


def text_of(row: Row, column: str | None) -> str | None:
    """A value as text; None for null, "" and where there is no such column."""
    value = None if column is None else row[column]
    return None if value is None or value == "" else str(value)
