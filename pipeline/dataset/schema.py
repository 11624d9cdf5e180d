"""Samples, partitions, and the Arrow schema of the rows that they become.

Imports neither Ray nor torch, so that a loader starts without them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
LabelState = Literal["verified_present", "verified_absent", "unknown"]
Stratum = Literal["near", "mid", "far", "generated"]
Role = Literal["positive", "negative"]


class RejectReason(StrEnum):
    """Why a sample cannot be used. "Not selected" is policy, not a reject."""

    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"
    BAD_ASPECT = "bad_aspect"
    UNSUPPORTED_MODE = "unsupported_mode"
    CRASHED = "crashed"  # it ended the processes that read it
    PRIVATE_ADDRESS = "private_address"
    DUPLICATE = "duplicate"
    IN_EVAL_SET = "in_eval_set"
    SUSPECTED_POSITIVE = "suspected_positive"
    CONFLICTING_LABELS = "conflicting_labels"
    TAKEN_DOWN = "taken_down"


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """What a source yields: encoded bytes and their metadata. `label` "" is no target."""

    uri: str
    image: bytes
    label: str = ""
    label_state: LabelState = "unknown"
    class_name: str | None = None  # the source's own label, e.g. a wnid or a MID
    stratum: Stratum | None = None  # how near to the target, if the source knows
    group: str | None = None  # leakage unit: samples of one group share a split
    license: str | None = None
    author: str | None = None
    rotation: int | None = None  # degrees counter-clockwise to the intended orientation
    # Why the source has not read it; `image` is then b"".
    refused: RejectReason | None = None
    # A label issue that the source knows of, because of which a sample without label is not a safe
    # negative: suspected_positive (it goes to quarantine) or conflicting_labels.
    doubt: RejectReason | None = None


@dataclass(frozen=True)
class Partition:
    """A unit of input. `id` is stable across runs; `locator` is JSON that the source understands.

    `num_samples` is None if counting would mean reading.
    """

    id: str
    locator: Any
    num_samples: int | None = None


class Positioned(NamedTuple):
    """A sample and its place in the input."""

    partition: str
    ordinal: int
    sample: RawSample


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The size and quality of stored images, and which are refused. Sides and areas in pixels."""

    image_size: int  # of the shorter side; larger images are scaled down, none is enlarged
    jpeg_quality: int = 90
    min_side: int = 1
    max_pixels: int = 64_000_000  # by the header; larger images are never decoded
    max_aspect: float = float("inf")  # longer side / shorter side


def row_schema(embedding_dim: int) -> pa.Schema:
    """Columns of one row; `embedding` is float16[D], L2-normalised, D = `embedding_dim`."""
    return pa.schema(
        [
            ("key", pa.string()),
            ("source", pa.string()),
            ("partition", pa.string()),
            ("ordinal", pa.int64()),
            ("uri", pa.string()),
            ("label", pa.string()),
            ("label_state", pa.string()),
            ("class_name", pa.string()),
            ("stratum", pa.string()),
            ("group", pa.string()),
            ("split", pa.string()),
            ("license", pa.string()),
            ("author", pa.string()),
            ("rotation", pa.int32()),
            ("doubt", pa.string()),
            ("content_hash", pa.string()),
            ("perceptual_hash", pa.uint64()),
            ("image", pa.large_binary()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("embedding", pa.list_(pa.float16(), embedding_dim)),
            ("similarity", pa.float32()),
            ("inclusion_probability", pa.float32()),
            ("selected", pa.bool_()),
            ("reject_reason", pa.string()),
        ]
    )


READ_COLUMNS = (
    "key", "source", "partition", "ordinal", "uri", "label", "label_state", "class_name",
    "stratum", "group", "split", "license", "author", "rotation", "doubt", "content_hash", "image",
    "reject_reason",
)  # fmt: skip


def with_columns(rows: pa.Table, **columns: pa.Array | pa.ChunkedArray) -> pa.Table:
    """rows with these columns: one that it already has is replaced in place, others appended."""
    for name, column in columns.items():
        index = rows.schema.get_field_index(name)
        if index < 0:
            rows = rows.append_column(name, column)
        else:
            rows = rows.set_column(index, name, column)
    return rows


def embedding_matrix(rows: pa.Table, name: str = "embedding") -> NDArray[np.float32]:
    """embedding_BD of rows that all have one in the column `name`."""
    column = rows[name].combine_chunks()
    assert column.null_count == 0
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values.reshape(rows.num_rows, column.type.list_size), np.float32)
