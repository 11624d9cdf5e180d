"""The JSON records of a data set: parts, plans, shards, sources and generations.

A file without a record is not part of the data set. Imports neither Ray nor torch, so that a
loader starts without them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, field_serializer, model_validator

from pipeline.dataset.schema import SPLITS, Role, Split
from pipeline.dataset.seen_labels import SeenLabels

FORMAT_VERSION = 2

Command = Literal["build", "label", "mine", "review", "takedown"]  # that commits a generation


class _Record(BaseModel, frozen=True, extra="forbid"):
    """A committed JSON file."""


# Fields that version 0.1 wrote, null without the setting named here.
_REMOVED = {"cascade": "selection.cascade", "cheap_encoder": "selection.cascade"}


class _OlderRecord(_Record):
    """A record that may come from version 0.1 and have fields that were removed."""

    @model_validator(mode="before")
    @classmethod
    def _drop_removed(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for field in _REMOVED.keys() & data.keys():
            if data[field] is not None:
                raise ValueError(
                    f"built with {_REMOVED[field]} by version 0.1; build it again, or use 0.1"
                )
        return {field: value for field, value in data.items() if field not in _REMOVED}


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
    """The sum, with reasons sorted so that equal sums are equal JSON."""
    total: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for each in counts:
        total.update(each.model_dump(exclude={"rejected"}))
        rejected.update(each.rejected)
    return Counts(**total, rejected=dict(sorted(rejected.items())))


class PartRecord(_Record):
    """Commits one part: the rows of consecutive samples of one span of partitions."""

    source: str
    round: int
    span: int  # number in the round
    span_id: str  # hash of the ids of its partitions, to detect a changed listing
    part: int  # number in the span
    is_last: bool  # of the span
    path: str
    sha256: str
    counts: Counts
    embeddings_sha256: str | None = None  # of the file with its embeddings, if they are kept
    # Of sources that declare labels, else null.
    seen: SeenLabels | None = None  # in the rows of this part
    left_out: SeenLabels | None = None  # by the source, in the span so far; complete in its last


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


class TableRecord(_Record):
    """A parquet file about one round of one source."""

    path: str
    sha256: str
    num_rows: int


class SourceRecord(_Record):
    """What a generation holds of one source, all rounds together."""

    name: str
    fingerprint: str  # of the config entry and all else that its selection depends on
    role: Role
    num_rounds: int
    num_partitions: int  # read so far: the first ones of its plan
    counts: Counts
    ledger: tuple[TableRecord, ...]  # every row seen, without image and embedding
    hashes: tuple[TableRecord, ...]  # of the images in its shards: bytes and perceptual hash
    plan_sha256: str = ""  # `SourcePlan.digest` of its plan; "" in older versions


class TakenDown(_Record):
    """Samples that must never be used, whatever source they come from."""

    keys: frozenset[str] = frozenset()
    uris: frozenset[str] = frozenset()
    authors: frozenset[str] = frozenset()
    content_hashes: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self != TakenDown()

    def __or__(self, other: "TakenDown") -> "TakenDown":
        return TakenDown(
            **{name: getattr(self, name) | getattr(other, name) for name in TakenDown.model_fields}
        )

    def overlaps(self, other: "TakenDown") -> bool:
        return any(getattr(self, name) & getattr(other, name) for name in TakenDown.model_fields)

    @field_serializer("*")
    def _in_order(self, values: frozenset[str]) -> list[str]:
        return sorted(values)  # equal sets are equal JSON


class MinedRecord(_Record):
    """One pass of a trained model over the candidates (pipeline/mine/driver.py)."""

    generation: int  # the one that it committed
    model: str  # fingerprint of the weights, their calibration and the guard
    budget: int | None  # new samples asked for; null means a third of those there were
    sources: tuple[str, ...]  # without those that were built again since
    num_read: int  # candidates of these sources, with rejected ones
    log_scales: tuple[float, ...]  # log c, one per fold: pi2 = min(1, c * probability)
    num_scored: int
    num_expected: float  # newly selected, as expected before the draw
    num_selected: int  # newly selected
    num_suspected: int  # moved to quarantine
    about: dict[str, Any]  # describes the model, for people


class Generation(_Record):
    """An immutable list of shards, old and new. Writing it is the commit of a round."""

    number: int
    parent: int | None
    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]
    quarantine: tuple[ShardFile, ...]  # suspected positives, in no split
    next_numbers: dict[str, int]  # by path without number, so that no name is given twice
    taken_down: TakenDown = TakenDown()  # all together
    # What was asked for, each time, with the bytes that the names stood for: once it is purged,
    # nothing else tells.
    takedowns: tuple[TakenDown, ...] = ()
    mined: tuple[MinedRecord, ...] = ()
    parent_sha256: str = ""  # of the parent's record; "" in older versions
    made_by: Command | None = None  # None in older versions

    @property
    def counts(self) -> Counts:
        return add_counts(source.counts for source in self.sources)

    def samples_by_split(self) -> dict[Split, int]:
        return {
            split: sum(shard.num_samples for shard in self.shards if shard.split == split)
            for split in SPLITS
        }

    @property
    def num_quarantined(self) -> int:
        """Suspected positives that nobody has judged."""
        return sum(file.num_samples for file in self.quarantine)

    def paths(self) -> set[str]:
        """All files that it lists, relative to the data set."""
        return set(self.sha256_by_path())

    def sha256_by_path(self) -> dict[str, str]:
        """Of all files that it lists."""
        files = (*self.shards, *self.quarantine)
        tables = (table for s in self.sources for table in (*s.ledger, *s.hashes))
        return {
            **{file.path: file.sha256 for file in files},
            **{file.sidecar_path: file.sidecar_sha256 for file in files},
            **{table.path: table.sha256 for table in tables},
        }


NO_GENERATION = Generation(
    number=0, parent=None, sources=(), shards=(), quarantine=(), next_numbers={}
)


class SourcePlan(_OlderRecord):
    """How one source is sampled. Committed before its first part.

    `num_partitions` of the `num_listed` that the source lists are taken, at even steps; of an
    endless source, where `num_listed` is null, the first ones. They are read in spans, one per
    task, and committed in rounds. Expected numbers come from the pilot.
    """

    source: str
    role: Role
    fingerprint: str
    num_partitions: int
    num_listed: int | None
    partitions_per_budget: int  # by this many an endless source is extended with --follow
    partitions_per_span: int
    spans_per_round: int
    samples_per_partition: float
    draw: int = 0  # larger each time that it is drawn anew because files have changed
    files: str = ""  # the table of the files that it was planned with; "" if there is none
    source_fingerprint: str = ""  # of all settings but the amounts; "" in plans of older versions
    num_wanted: float = 0.0  # training negatives that the budget asks for
    scale: float  # of the inclusion probability of training negatives
    min_probability: float | None = None  # floor of it; null in plans of older versions
    eval_probability: float  # inclusion probability of val and test negatives
    # Ledgers of the same source with a smaller budget: what is certain there stays selected.
    smaller: tuple[TableRecord, ...] = ()
    expected_selected: dict[str, float]  # by "split/stratum"
    expected_rejected: dict[str, float]  # by RejectReason
    expected_bytes: float
    num_pilot: int
    seconds_per_candidate: float  # of one worker, only for estimates

    @property
    def num_candidates(self) -> int:
        return round(self.num_partitions * self.samples_per_partition)

    @property
    def digest(self) -> str:
        """sha256 of what rows depend on: an extension, or another measurement, keeps it."""
        names = {
            "source", "role", "fingerprint", "num_listed", "partitions_per_span",
            "spans_per_round", "scale", "eval_probability",
        }  # fmt: skip
        if self.min_probability is not None:  # older versions have neither
            names |= {"min_probability", "smaller"}
        content = json.dumps(self.model_dump(mode="json", include=names), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def partitions_per_round(self) -> int:
        return self.partitions_per_span * self.spans_per_round


class ReferenceInfo(_Record):
    """The reference bank's identity, and the limits of similarity that follow from it.

    They are fitted on the positives' own leave-one-out similarities: above `ceiling` an unlabelled
    candidate is a suspected positive; `near` and `mid` are the lower limits of these strata for
    candidates whose label does not decide.
    """

    fingerprint: str  # "" if positives were removed and the limits are not fitted on the others
    num_embeddings: int
    num_positives: int
    median: float
    ceiling: float
    near: float
    mid: float
    bank_sha256: str = ""  # of reference.parquet; "" in older versions
    draw: int = 0  # plans of a lower draw belong to an earlier bank
    is_outdated: bool = False  # its positives have changed, and the next build makes it anew
    files: dict[str, str] = Field(default_factory=dict)  # by source of positives, as in a plan

    @property
    def is_current(self) -> bool:
        """Whether sources may be planned by it; else the next build makes it anew."""
        return bool(self.fingerprint) and not self.is_outdated


class DatasetInfo(_OlderRecord):
    """`dataset.json`: what a data set is. `latest_generation` is derived, and repaired on open."""

    format_version: int = FORMAT_VERSION
    targets: tuple[str, ...]
    encoder: str  # fingerprint of the encoder, runtime included
    embedding_dim: int
    fingerprint: str  # of the settings that every row depends on
    fingerprint_inputs: dict[str, Any]  # these settings, to explain a refusal
    latest_generation: int
    generation_sha256: str = ""  # of the record of the latest generation; "" in older versions


def strata_by_similarity(similarity: pa.ChunkedArray, reference: ReferenceInfo) -> pa.ChunkedArray:
    """near, mid or far, by similarity only; null without a similarity."""
    similarity = pc.cast(similarity, pa.float64())
    is_mid = pc.greater_equal(similarity, reference.mid)
    is_near = pc.greater_equal(similarity, reference.near)
    return pc.if_else(is_near, "near", pc.if_else(is_mid, "mid", "far"))
