"""The data that flows: samples, rows, parts, shards, generations, and how keys are made.

Imports neither Ray nor torch, so that a loader starts without them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, Field

FORMAT_VERSION = 1

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
    DUPLICATE = "duplicate"
    IN_EVAL_SET = "in_eval_set"
    SUSPECTED_POSITIVE = "suspected_positive"
    CONFLICTING_LABELS = "conflicting_labels"


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """What a source yields: encoded bytes and what is known of them. `label` "" is no target."""

    uri: str
    image: bytes
    label: str = ""
    label_state: LabelState = "unknown"
    class_name: str | None = None  # the source's own label, e.g. a wnid or a MID
    stratum: Stratum | None = None  # how near to the target, where the source knows
    group: str | None = None  # leakage unit: samples of one group share a split
    license: str | None = None
    author: str | None = None
    rotation: int | None = None  # degrees counter-clockwise to the intended orientation
    # Why a sample without label is not to be trusted as a negative, where the source knows:
    # suspected_positive (it goes to quarantine) or conflicting_labels.
    doubt: RejectReason | None = None


@dataclass(frozen=True)
class Partition:
    """A unit of input. `id` is stable across runs; `locator` is JSON that the source reads.

    `num_samples` is None where counting would mean reading.
    """

    id: str
    locator: Any
    num_samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What an image becomes, and what is refused. Sides and areas in pixels."""

    image_size: int  # of the shorter side; a larger image is scaled down, none is enlarged
    jpeg_quality: int = 90
    min_side: int = 1
    max_pixels: int = 64_000_000  # by the header: a larger one is never decoded
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


class _Record(BaseModel, frozen=True, extra="forbid"):
    """A committed JSON file."""


class Counts(_Record):
    """read = selected + not_selected + rejected, always."""

    read: int = 0
    selected: int = 0
    not_selected: int = 0
    rejected: dict[str, int] = Field(default_factory=dict)  # by RejectReason

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    def adds_up(self) -> bool:
        return self.read == self.selected + self.not_selected + self.num_rejected


def add_counts(counts: Iterable[Counts]) -> Counts:
    """Sum, reason by reason; reasons come out sorted so that equal sums are equal JSON."""
    read = selected = not_selected = 0
    rejected: dict[str, int] = {}
    for each in counts:
        read += each.read
        selected += each.selected
        not_selected += each.not_selected
        for reason, number in each.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + number
    return Counts(
        read=read,
        selected=selected,
        not_selected=not_selected,
        rejected=dict(sorted(rejected.items())),
    )


class PartRecord(_Record):
    """Commits one part: the rows of `samples_per_part` consecutive samples of one partition.

    `packable` counts, per output group (`group_of`), the rows whose image the part carries.
    """

    source: str
    partition: str
    part: int
    is_last: bool
    path: str
    sha256: str
    counts: Counts
    packable: dict[str, int]


class ShardFile(_Record):
    """A tar and its sidecar, one source. Paths are relative to the data set."""

    path: str
    sha256: str
    size_bytes: int
    sidecar_path: str
    sidecar_sha256: str
    num_samples: int
    source: str


class ShardRecord(ShardFile):
    """An immutable shard: one source, one split, one label ("" = none of the targets)."""

    split: Split
    label: str


class LedgerRecord(_Record):
    """A parquet file with every row seen of one source, without image and embedding."""

    path: str
    sha256: str
    num_rows: int


class SourceRecord(_Record):
    """What one round over one source did."""

    name: str
    round: int  # 1 for the source's first generation
    fingerprint: str  # of the config entry and all that the selection depends on
    role: Role
    num_partitions: int
    counts: Counts
    ledger: tuple[LedgerRecord, ...]


class Generation(_Record):
    """An immutable list of shards, old and new. Writing it is the commit of a round."""

    number: int
    parent: int | None
    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]
    quarantine: tuple[ShardFile, ...]  # suspected positives, in no split

    @property
    def counts(self) -> Counts:
        return add_counts(source.counts for source in self.sources)


class SourcePlan(_Record):
    """How one round over one source is sampled. Committed before its first part.

    `num_partitions` are taken, every `stride`-th of the source's list (1 takes a prefix).
    Expected numbers come from the pilot.
    """

    source: str
    round: int
    role: Role
    fingerprint: str
    num_partitions: int
    stride: float
    num_candidates: int
    scale: float  # of the inclusion probability of training negatives
    eval_probability: float  # inclusion probability of val and test negatives
    expected_selected: dict[str, float]  # by "split/stratum"
    expected_rejected: dict[str, float]  # by RejectReason
    expected_bytes: float
    num_pilot: int
    seconds_per_candidate: float  # of one worker; for estimates alone


class ReferenceInfo(_Record):
    """What the reference bank is, and the similarities that follow from it.

    The limits are fitted on the positives' own leave-one-out similarities (METHOD in README):
    above `ceiling` an unlabelled candidate is a suspected positive; `near` and `mid` are the
    lower limits of those strata where no label tells.
    """

    fingerprint: str
    num_embeddings: int
    num_positives: int
    median: float
    ceiling: float
    near: float
    mid: float


class DatasetInfo(_Record):
    """`dataset.json`: what a data set is; `latest_generation` is derived and repaired on open."""

    format_version: int = FORMAT_VERSION
    targets: tuple[str, ...]
    encoder: str  # fingerprint of the encoder, runtime included
    embedding_dim: int
    fingerprint: str  # of all settings that every row depends on
    fingerprint_inputs: dict[str, Any]  # what went into it, to explain a refusal
    latest_generation: int


def strata_by_similarity(similarity: pa.ChunkedArray, reference: ReferenceInfo) -> pa.ChunkedArray:
    """near, mid or far, where no label tells; null where there is no similarity."""
    similarity = pc.cast(similarity, pa.float64())
    is_mid = pc.greater_equal(similarity, reference.mid)
    is_near = pc.greater_equal(similarity, reference.near)
    return pc.if_else(is_near, "near", pc.if_else(is_mid, "mid", "far"))


def embedding_matrix(rows: pa.Table) -> NDArray[np.float32]:
    """embedding_BD of rows that all have one."""
    column = rows["embedding"].combine_chunks()
    assert column.null_count == 0
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values.reshape(rows.num_rows, column.type.list_size), np.float32)
