"""From the label files of Open Images to a verdict per image: does it show the target?

A row of a label file is a claim. Without a claim a class is unknown, not absent.
https://github.com/openimages/dataset/blob/main/READMEV3.md
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from more_itertools import ilen

from pipeline.dataset.schema import LabelState, RejectReason, Stratum
from pipeline.sources.kinds.open_images.classes import TargetClasses
from pipeline.sources.kinds.open_images.csv_tables import read_columns
from pipeline.sources.kinds.open_images.lookups import KEY, is_cheap, open_lookup

# How boxes with IsDepiction 1 count: drawings, toys, cartoons.
Depictions = Literal["exclude", "positive", "ignore"]

LABEL_NAME = {"LabelName": pa.string()}
_MIN_MACHINE_CONFIDENCE = 0.5


class Claim(IntEnum):
    ABSENT = 0  # verified by people
    PRESENT = 1  # verified by people
    SUSPECTED = 2  # by a machine
    BOX = 3  # drawn by people
    DEPICTION_BOX = 4


@dataclass(frozen=True)
class Verdict:
    """What the labels of one image say about the target."""

    label_state: LabelState = "unknown"
    doubt: RejectReason | None = None
    is_depiction: bool = False  # the target is there, but only as a drawing or toy
    class_name: str | None = None  # the most specific verified class
    stratum: Stratum | None = None

    @property
    def is_target(self) -> bool:
        return self.label_state == "verified_present"


def judge(claims: Iterable[tuple[str, Claim]], classes: TargetClasses) -> Verdict:
    """The verdict of claims, which are MIDs with what is claimed about them.

    In this order: verified present -> present, or a conflict if also absent; the target or an
    ancestor verified absent -> absent; suspected by a machine -> a doubt; a box -> present; else
    unknown.
    """
    by_claim: dict[Claim, set[str]] = {claim: set() for claim in Claim}
    for mid, claim in claims:
        by_claim[claim].add(mid)
    present = by_claim[Claim.PRESENT]
    boxed, depicted = by_claim[Claim.BOX], by_claim[Claim.DEPICTION_BOX]
    verdict = Verdict(class_name=classes.most_specific(present), stratum=classes.stratum(present))
    target = Verdict(
        label_state="verified_present",
        is_depiction=bool(depicted) and not boxed,
        class_name=verdict.class_name,
    )
    if shown := present & classes.targets:
        if all(classes.is_denied(mid, by_claim[Claim.ABSENT]) for mid in shown):
            return replace(verdict, doubt=RejectReason.CONFLICTING_LABELS)
        return target
    if classes.is_absent(by_claim[Claim.ABSENT]):
        return replace(verdict, label_state="verified_absent")
    if by_claim[Claim.SUSPECTED]:
        return replace(verdict, doubt=RejectReason.SUSPECTED_POSITIVE)
    if boxed or depicted:
        return target
    # "Felidae" by itself may be a cat; beside "Tiger" it is that tiger.
    if verdict.stratum is None and not classes.ambiguous.isdisjoint(present):
        return replace(verdict, doubt=RejectReason.SUSPECTED_POSITIVE)
    return verdict


@dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """URIs of label files."""

    human: tuple[str, ...] = ()
    machine: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.human, *self.machine, *self.boxes)


class ImageLabels:
    """Verdicts by image id, from label files in any row order."""

    def __init__(
        self, files: LabelFiles, classes: TargetClasses, *, depictions: Depictions = "exclude"
    ) -> None:
        self._classes = classes
        self._mids = classes.relevant
        self._claims = open_lookup(
            files.all,
            _recipe(files, classes, depictions),
            lambda: _read_claims(files, classes, depictions),
        )

    def verdict(self, image_id: str) -> Verdict:
        rows = self._claims.find(image_id)
        return judge(((self._mids[row["mid"]], Claim(row["claim"])) for row in rows), self._classes)

    def image_ids(self) -> Iterator[str]:
        """Of the images with a label of a class that matters, in the tars or not."""
        return self._claims.image_ids()

    def has_claims_of_target(self) -> bool:
        num_targets = len(self._classes.targets)
        return any(
            row["mid"] < num_targets
            for image_id in self.image_ids()
            for row in self._claims.find(image_id)
        )


def count_labelled(files: LabelFiles, classes: TargetClasses, depictions: Depictions) -> int | None:
    """Images with a label of a class that matters; None if counting would take minutes."""
    if not is_cheap(files.all, _recipe(files, classes, depictions)):
        return None
    labels = ImageLabels(files, classes, depictions=depictions)
    return ilen(labels.image_ids())


def _recipe(files: LabelFiles, classes: TargetClasses, depictions: Depictions) -> str:
    recipe = [asdict(files), classes.relevant, sorted(classes.targets), depictions]
    return json.dumps(["claims", *recipe])


def _read_claims(
    files: LabelFiles, classes: TargetClasses, depictions: Depictions
) -> Iterator[pa.Table]:
    """Rows of ImageID, index of the MID in `relevant`, and claim; only of relevant classes."""
    mids, num_targets = pa.array(classes.relevant), len(classes.targets)
    columns = {KEY: pa.string(), **LABEL_NAME}
    label_columns = {**columns, "Source": pa.string(), "Confidence": pa.float32()}
    for setting, uris in (("human_labels", files.human), ("machine_labels", files.machine)):
        for uri in uris:
            for rows in read_columns(uri, setting=f"params.{setting}", required=label_columns):
                yield _label_claims(_of_classes(rows, mids), num_targets)
    flags = {"IsDepiction": pa.int8()}  # 0, 1, or -1 for unknown; not in V2 and before
    for uri in files.boxes:
        for rows in read_columns(uri, setting="params.boxes", required=columns, optional=flags):
            yield _box_claims(_of_classes(rows, mids[:num_targets]), depictions)


def _of_classes(rows: pa.Table, mids: pa.Array) -> pa.Table:
    rows = rows.append_column("mid", pc.index_in(rows["LabelName"], mids).cast(pa.int16()))
    return rows.filter(rows["mid"].is_valid())


def _label_claims(rows: pa.Table, num_targets: int) -> pa.Table:
    confidence, nothing = rows["Confidence"], pa.scalar(None, pa.int8())
    is_suspected = pc.and_(
        pc.greater_equal(confidence, _MIN_MACHINE_CONFIDENCE), pc.less(rows["mid"], num_targets)
    )
    by_machine = pc.if_else(is_suspected, _code(Claim.SUSPECTED), nothing)
    by_people = pc.if_else(
        pc.equal(confidence, 1),
        _code(Claim.PRESENT),
        pc.if_else(pc.equal(confidence, 0), _code(Claim.ABSENT), nothing),
    )
    claims = pc.if_else(pc.equal(rows["Source"], "machine"), by_machine, by_people)
    return _claim_table(rows, claims)


def _box_claims(rows: pa.Table, depictions: Depictions) -> pa.Table:
    claims = pa.repeat(_code(Claim.BOX), rows.num_rows)
    if depictions != "positive" and "IsDepiction" in rows.column_names:
        depicted = _code(Claim.DEPICTION_BOX if depictions == "exclude" else None)
        is_depiction = pc.fill_null(pc.equal(rows["IsDepiction"], 1), False)
        claims = pc.if_else(is_depiction, depicted, claims)
    return _claim_table(rows, claims)


def _claim_table(rows: pa.Table, claims: pa.Array | pa.ChunkedArray) -> pa.Table:
    table = pa.table({KEY: rows[KEY], "mid": rows["mid"], "claim": claims})
    return table.filter(table["claim"].is_valid())


def _code(claim: Claim | None) -> pa.Scalar:
    return pa.scalar(claim, pa.int8())
