"""The published CSVs of Open Images: where they are; license, author and rotation per image."""

import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.sources.kinds.open_images.csv_tables import read_columns
from pipeline.sources.kinds.open_images.lookups import KEY, Lookup, open_lookup

Split = Literal["train", "validation", "test"]

Kind = Literal[
    "human_labels", "machine_labels", "boxes", "class_descriptions", "hierarchy", "image_ids"
]

# Of each kind the first that exists is used; {s} is the split, {v7} its name since V7.
_PUBLISHED: dict[Kind, tuple[str, ...]] = {
    "human_labels": (
        "v7/oidv7-{v7}-annotations-human-imagelabels.csv",
        "v6/oidv6-{s}-annotations-human-imagelabels.csv",
        "v5/{s}-annotations-human-imagelabels.csv",
        "v5/{s}-annotations-human-imagelabels-boxable.csv",
    ),
    "machine_labels": (
        "v7/oidv7-{v7}-annotations-machine-imagelabels.csv",
        "v5/{s}-annotations-machine-imagelabels.csv",
    ),
    "boxes": (
        "v6/oidv6-{s}-annotations-bbox.csv",
        "v5/{s}-annotations-bbox.csv",
        "2018_04/{s}/{s}-annotations-bbox.csv",
    ),
    "class_descriptions": (
        "v7/oidv7-class-descriptions.csv",
        "v6/oidv6-class-descriptions.csv",
        "v5/class-descriptions.csv",
        "v7/oidv7-class-descriptions-boxable.csv",
        "v5/class-descriptions-boxable.csv",
    ),
    "hierarchy": ("2018_04/bbox_labels_600_hierarchy.json",),
    "image_ids": (
        "2018_04/{s}/{s}-images-with-rotation.csv",
        "2018_04/{s}/{s}-images-boxable-with-rotation.csv",
        "v6/oidv6-{s}-images-with-labels-with-rotation.csv",
        "2018_04/image_ids_and_rotation.csv",
    ),
}

KINDS = tuple(_PUBLISHED)

_TEXTS = {"License": pa.string(), "Author": pa.string()}
_COLUMNS = {"Subset": pa.string(), "Rotation": pa.float32(), **_TEXTS}


@dataclass(frozen=True)
class Facts:
    """Facts of the CSV of image ids; None if it has none."""

    license: str | None = None
    author: str | None = None
    rotation: int | None = None


class ImageFacts:
    """Facts by image id, for one split."""

    def __init__(self, uris: Sequence[str], split: str) -> None:
        self._rows = _open_ids(uris, split)

    def facts(self, image_id: str) -> Facts:
        for row in self._rows.find(image_id):
            return Facts(
                license=_text(row.get("License")),
                author=_text(row.get("Author")),
                rotation=_rotation(row.get("Rotation")),
            )
        return Facts()


def list_image_ids(uris: Sequence[str], human_labels: Sequence[str], split: str) -> Iterator[str]:
    """Ids of the images of a split, sorted: those in the CSVs of ids, else with a human label."""
    if uris:
        return _open_ids(uris, split).image_ids()
    return list_labelled_ids(human_labels)


def list_labelled_ids(uris: Sequence[str]) -> Iterator[str]:
    """Ids of the images that have a row in these files, sorted."""
    return open_lookup(uris, "ids", lambda: _read_keys(uris)).image_ids()


def _open_ids(uris: Sequence[str], split: str) -> Lookup:
    return open_lookup(uris, json.dumps(["facts", split]), lambda: _read_facts(uris, split))


def _read_facts(uris: Sequence[str], split: str) -> Iterator[pa.Table]:
    key = {KEY: pa.string()}
    for uri in uris:
        for rows in read_columns(uri, setting="params.image_ids", required=key, optional=_COLUMNS):
            if "Subset" in rows.column_names:
                # One of the files has all nine million images.
                rows = rows.filter(pc.equal(rows["Subset"], split)).drop_columns(["Subset"])
            yield rows


def _read_keys(uris: Sequence[str]) -> Iterator[pa.Table]:
    for uri in uris:
        for rows in read_columns(uri, setting="the label files", required={KEY: pa.string()}):
            yield rows.group_by(KEY, use_threads=False).aggregate([])


def _text(value: object) -> str | None:
    return str(value) if value else None


def _rotation(degrees: object) -> int | None:
    """A multiple of 90 from 0 to 270; None if unknown (`nan` or empty)."""
    if not isinstance(degrees, float) or not math.isfinite(degrees) or degrees % 90:
        return None
    return int(degrees) % 360


@functools.cache
def find_metadata(folder: str, kind: Kind, split: Split) -> str | None:
    """The file of a kind in a folder; None if there is none."""
    candidates = _candidates(folder, kind, split)
    return next((uri for uri in candidates if storage.exists(uri)), None)


def _candidates(folder: str, kind: Kind, split: Split) -> Iterator[str]:
    for name in _PUBLISHED[kind]:
        path = name.format(s=split, v7="val" if split == "validation" else split)
        for place in (path, path.rpartition("/")[2]):
            yield storage.join(folder, place)
            yield storage.join(folder, f"{place}.gz")
