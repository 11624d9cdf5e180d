"""From a row of a table to a sample: which columns hold the image, its class and the rest.

An image is bytes, or an address as text, or a struct of both as Hugging Face `datasets` stores it
(https://huggingface.co/docs/datasets/about_dataset_features): if `bytes` is null, `path` is read.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from pipeline import storage
from pipeline.dataset.schema import RawSample, RejectReason
from pipeline.dataset.seen_labels import SeenLabels
from pipeline.errors import ConfigError
from pipeline.sources.readers import tars
from pipeline.sources.readers.files import read_named_image
from pipeline.sources.readers.labels import LabelledParams, LabelRule, declared, label_rule

_log = logging.getLogger(__name__)

# What a column may hold; a text may be the address of an image.
Holds = Literal["images", "texts", "other"]
Row = Mapping[str, Any]

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
_LABEL_NAMES = ("label", "labels", "fine_label")


class TableParams(LabelledParams, frozen=True, extra="forbid"):
    """Settings of a source that is a table."""

    image_column: str | None = Field(
        None, description="Default: image, img, jpg ..., or the only column of images."
    )
    label_column: str | None = Field(
        None,
        description="Default: label, labels or fine_label, if there is one. A column that is named "
        "has to have a class in some row.",
    )
    license_column: str | None = Field(None, description="Default: license, if there is one.")
    author_column: str | None = Field(None, description="Default: author, if there is one.")
    group_column: str | None = Field(
        None, description="Samples with the same value share a split, e.g. patient_id."
    )
    rows_per_partition: int = Field(
        512,
        ge=1,
        description="Rows per partition. Row groups of a parquet file are joined until they have "
        "as many; of a data set that `datasets` streams, a partition is a file.",
    )
    allow_private: bool = Field(
        False,
        description="Whether web addresses in the table may lead to this machine and to private "
        "networks. Otherwise such rows are rejected as private_address.",
    )

    @property
    def declares_labels(self) -> bool:
        """Whether a class or the column of classes is named, which then has to occur."""
        return bool(self.target_labels or self.label_column)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns; None if there is none."""

    image: str
    label: str | None
    license: str | None
    author: str | None
    group: str | None
    allow_private: bool = False  # of addresses in the column of images

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


def choose_columns(settings: TableParams, columns: Mapping[str, Holds], where: str) -> Columns:
    """The columns by settings or usual names; raises ConfigError if that is not clear."""
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
        allow_private=settings.allow_private,
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
    """A usual name, or the only column of images.

    Never a text of another name: it may be any address, and reading it would fetch that.
    """
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


def columns_and_rule(
    params: TableParams,
    columns: Mapping[str, Holds],
    class_names: Callable[[str], Sequence[str]],
    where: str,
) -> tuple[Columns, LabelRule]:
    """`class_names` gives the names of the numbered classes in a column, if the data has them."""
    chosen = choose_columns(params, columns, where)
    rule = label_rule(
        params,
        names=class_names(chosen.label) if chosen.label else (),
        is_labelled=chosen.label is not None,
        hint=f"give `params.label_column`; {where} has {', '.join(columns)}",
        where=where if chosen.label is None else f"{where}: column {chosen.label!r}",
    )
    return chosen, rule


def check_column(params: TableParams, rule: LabelRule, seen: SeenLabels) -> None:
    """Raises ConfigError if a label that the settings declare is not among those seen."""
    column = params.label_column
    declared(params, rule, f"`params.label_column` ({column})" if column else "").check(seen)


def row_sample(uri: str, row: Row, columns: Columns, rule: LabelRule, folder: str) -> RawSample:
    """The sample of a row; `folder` is that of the table, where relative paths start."""
    facts = rule.facts(None if columns.label is None else row[columns.label])
    image, refused = b"", None
    try:
        image = image_bytes(row[columns.image], folder, allow_private=columns.allow_private)
    except storage.PrivateAddress as error:
        _log.warning("%s: %s", storage.redact(uri), error)
        refused = RejectReason.PRIVATE_ADDRESS
    return RawSample(
        uri=uri,
        image=image,
        refused=refused,
        label=facts.label,
        label_state=facts.label_state,
        class_name=facts.class_name,
        group=text_of(row, columns.group),
        license=text_of(row, columns.license),
        author=text_of(row, columns.author),
    )


def image_bytes(value: object, folder: str, *, allow_private: bool = False) -> bytes:
    """Encoded bytes of one value of an image column; b"" if there are none.

    `folder` is that of the table, where relative paths start. Raises PrivateAddress for a web
    address that is none of the internet, unless `allow_private`.
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
    return read_named_image(path, folder, allow_private=allow_private)


def text_of(row: Row, column: str | None) -> str | None:
    """A value as text; None for null, "" and without such a column."""
    value = None if column is None else row[column]
    return None if value is None or value == "" else str(value)
