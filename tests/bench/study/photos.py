"""The photographs of a study: a folder tree, its kinds, its splits, and tables for the pipeline.

cats/ the positives; near/<kind>/ look-alikes; random/<kind>/ anything else; imagenet_sample/<wnid>/
a little of everything.
"""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset.keys import sha256_hex, split_of, unit_hash
from pipeline.dataset.schema import Split
from pipeline.errors import ConfigError
from pipeline.sources.kinds.imagenet.classes import PRESETS

_log = logging.getLogger(__name__)

_POSITIVES, _IMAGENET = "cats", "imagenet_sample"
_NEGATIVES = ("near", "random", _IMAGENET)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FELIDS = {
    "bobcat", "caracal", "cheetah", "cougar", "jaguar", "leopard", "lion", "lynx", "ocelot",
    "panther", "puma", "tiger",
}  # fmt: skip
# Strata in the order of the table; an image is in one or two of them.
STRATA = ("near", "near_felids", "near_others", "far", "imagenet")


@dataclass(frozen=True)
class Photo:
    """One file. kind: its folder below the root, e.g. near/tiger."""

    path: str
    kind: str
    content_hash: str


@dataclass(frozen=True)
class Photos:
    """All usable files; of files with equal bytes only the first."""

    positives: tuple[Photo, ...]
    negatives: tuple[Photo, ...]

    @property
    def fingerprint(self) -> str:
        names = sorted(f"{p.kind} {p.content_hash}" for p in (*self.positives, *self.negatives))
        return sha256_hex("\n".join(names).encode())[:16]


def find_photos(root: str) -> Photos:
    """Raises ConfigError without positives or without any negatives; logs other missing folders."""
    seen: set[str] = set()
    by_folder = {name: _photos_in(root, name, seen) for name in (_POSITIVES, *_NEGATIVES)}
    positives = by_folder.pop(_POSITIVES)
    if not positives:
        raise ConfigError(f"{root}: no image below {_POSITIVES}/, where the positives should be")
    for name, photos in by_folder.items():
        if not photos:
            _log.warning("%s: no image below %s/, the study goes on without", root, name)
    negatives = tuple(photo for photos in by_folder.values() for photo in photos)
    if not negatives:
        raise ConfigError(f"{root}: no image below {', '.join(_NEGATIVES)}: nothing to compare")
    return Photos(positives, negatives)


def _photos_in(root: str, name: str, seen: set[str]) -> tuple[Photo, ...]:
    folder = str(Path(root).resolve() / name)
    cats = PRESETS["cat"].targets | PRESETS["cat"].ambiguous
    photos = []
    for file in storage.list_files(folder, _SUFFIXES):
        path = f"{folder}/{file}"
        kind = f"{name}/{file}".rpartition("/")[0]
        content_hash = sha256_hex(Path(path).read_bytes())
        if content_hash in seen or (name == _IMAGENET and cats & set(kind.split("/"))):
            continue
        seen.add(content_hash)
        photos.append(Photo(path, kind, content_hash))
    return tuple(photos)


def strata_of(kind: str) -> tuple[str, ...]:
    """near/tiger -> near, near_felids; random/clothing -> far."""
    folder, _, rest = kind.partition("/")
    if folder == "near":
        return ("near", "near_felids" if rest.split("/")[0] in _FELIDS else "near_others")
    return ("imagenet",) if folder == _IMAGENET else ("far",)


def thin_out(
    photos: Sequence[Photo], *, seed: int, near_share: float | None
) -> tuple[list[Photo], list[Photo]]:
    """The stream of negatives, of which look-alikes are a share of `near_share`, and those left.

    None, or a share that is not reached, leaves none.
    """
    near = [photo for photo in photos if "near" in strata_of(photo.kind)]
    others = [photo for photo in photos if "near" not in strata_of(photo.kind)]
    if near_share is None:
        return list(photos), []
    near.sort(key=lambda photo: unit_hash("stream", seed, photo.content_hash))
    num_kept = round(near_share / (1 - near_share) * len(others))
    return [*near[:num_kept], *others], near[num_kept:]


def assign_splits(
    photos: Iterable[Photo], *, seed: int, shares: Mapping[Split, float]
) -> dict[str, Split]:
    """Split by content hash, another for every seed; exactly `shares` of each kind, up to rounding.

    ImageNet is one kind, with an image or so of each class.
    """
    kinds: dict[str, list[Photo]] = defaultdict(list)
    for photo in photos:
        kinds[_IMAGENET if photo.kind.startswith(_IMAGENET) else photo.kind].append(photo)
    splits: dict[str, Split] = {}
    for members in kinds.values():
        ordered = sorted(p.content_hash for p in members)
        ordered.sort(key=lambda content_hash: unit_hash("study", seed, content_hash))
        num_test = round(shares["test"] * len(ordered))
        num_val = round(shares["val"] * len(ordered))
        for position, content_hash in enumerate(ordered):
            held_out: Split = "test" if position < num_test else "val"
            splits[content_hash] = held_out if position < num_test + num_val else "train"
    return splits


def take_positives(
    photos: Sequence[Photo], splits: Mapping[str, Split], *, seed: int, number: int
) -> list[Photo]:
    """`number` for training and all that are held out; a larger number keeps a smaller one's."""
    train = [photo for photo in photos if splits[photo.content_hash] == "train"]
    train.sort(key=lambda photo: unit_hash("positives", seed, photo.content_hash))
    return [*train[:number], *(p for p in photos if splits[p.content_hash] != "train")]


def write_table(
    path: Path,
    photos: Iterable[Photo],
    splits: Mapping[str, Split],
    *,
    fractions: Mapping[Split, float],
) -> None:
    """A table for the source `parquet`: image (where the file is), kind, group.

    In the order of a hash, so that any beginning of it is a random sample for the pilot.
    """
    ordered = sorted(photos, key=lambda photo: unit_hash("order", photo.content_hash))
    rows = [
        {
            "image": photo.path,
            "kind": photo.kind,
            "group": _group_in(splits[photo.content_hash], photo.content_hash, fractions),
        }
        for photo in ordered
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=64)


def _group_in(split: Split, content_hash: str, fractions: Mapping[Split, float]) -> str:
    """A leakage group that falls into `split`: the pipeline splits by the hash of the group."""
    groups = (f"{content_hash}-{number}" for number in itertools.count())
    return next(group for group in groups if split_of(group, fractions) == split)
