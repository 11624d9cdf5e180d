"""Where the metadata of Open Images lie: under the names by which they are published.

V5, V6 and V7 share files, and not every version has every one. Paths are those below
https://storage.googleapis.com/openimages/; a folder may also hold them flat, or as `.gz`.
"""

import functools
from collections.abc import Iterator
from typing import Literal

from pipeline import storage

Split = Literal["train", "validation", "test"]
Kind = Literal[
    "human_labels", "machine_labels", "boxes", "class_descriptions", "hierarchy", "image_ids"
]

# Of each kind the first that is there; {s} is the split, {v7} its name since V7.
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


@functools.cache
def find_metadata(folder: str, kind: Kind, split: Split) -> str | None:
    """The file of a kind in a folder, None where there is none."""
    candidates = _candidates(folder, kind, split)
    return next((uri for uri in candidates if storage.exists(uri)), None)


def _candidates(folder: str, kind: Kind, split: Split) -> Iterator[str]:
    for name in _PUBLISHED[kind]:
        path = name.format(s=split, v7="val" if split == "validation" else split)
        for place in (path, path.rpartition("/")[2]):
            yield storage.join(folder, place)
            yield storage.join(folder, f"{place}.gz")
