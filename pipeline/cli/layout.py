"""What a folder of pictures holds, by names alone: those of the target, and others."""

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.sources.kinds.imagenet.classes import PRESETS, is_wnid
from pipeline.sources.readers.folders import list_images

_FEWEST = 10  # positives: with fewer, nothing is left to measure a detector with
_SPLITS = {"train", "training", "val", "valid", "validation", "test"}
_POSITIVE = {"positive", "positives"}
_TARS = (".tar", ".tar.gz", ".tgz")
_MOST_SHOWN = 8
_MOST_FOLDERS = 8  # of others, side by side, that are a source each


@dataclass(frozen=True)
class Folder:
    """Pictures below a folder; `name` is relative to the one that was looked at, "" for itself."""

    name: str
    num_pictures: int
    skip: Sequence[str] = ()  # folders in it that do not belong to it
    is_imagenet: bool = False  # its folders are named by wnids


@dataclass(frozen=True)
class Found:
    """What a folder holds: pictures of the target, others, and those that nothing is known of."""

    root: str
    positives: Sequence[Folder]
    others: Sequence[Folder]
    num_loose: int = 0  # beside the folders
    tars: Sequence[str] = ()  # which are not looked into

    @property
    def num_positives(self) -> int:
        return sum(folder.num_pictures for folder in self.positives)


def look(root: str, target: str, *, is_all: bool = False) -> Found:
    """A folder named like the target, at any depth, holds its pictures; folders beside it others.

    Without folders other than splits, or with is_all, every picture shows the target. Raises
    ConfigError if it cannot tell, or for fewer than 10 pictures of the target.
    """
    tars = [name for name in storage.list_visible(root) if name.lower().endswith(_TARS)]
    names = _list_pictures(root, tars)
    folders = [posixpath.dirname(name) for name in names]
    if is_all or all(_is_split(folder) for folder in folders):
        return _enough(Found(root, [Folder("", len(names))], [], tars=tars), target)
    positive = _positive_folders(folders, target)
    if not positive and _are_wnids(folders) and target in PRESETS:
        return _enough(_imagenet(root, target, folders), target)
    if not positive:
        raise ConfigError(_cannot_tell(root, target, folders))
    positives = [Folder(name, positive[name]) for name in sorted(positive)]
    others, num_loose = _others(folders, set(positive))
    return _enough(Found(root, positives, others, num_loose, tars), target)


def as_name(text: str) -> str:
    """As names of targets and sources are written: lower case, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _list_pictures(root: str, tars: Sequence[str]) -> list[str]:
    try:
        return list_images(root, field="PHOTOS")
    except ConfigError as error:
        if not tars:
            raise
        raise ConfigError(
            f"{error}. Tars are not looked into: unpack those of the target, or name them in a "
            "config, as sources of kind webdataset"
        ) from None


def _is_split(folder: str) -> bool:
    return not folder or folder.lower() in _SPLITS


def _positive_folders(folders: Iterable[str], target: str) -> Counter[str]:
    """Numbers of pictures by the first folder of their path that is named like the target.

    Or, if there is none, by one that is called positive.
    """
    for words in ({target, f"{target}s", f"{target}es"}, _POSITIVE):
        found = Counter(_up_to_named(folder, words) for folder in folders)
        del found[""]
        if found:
            return found
    return Counter()


def _up_to_named(folder: str, words: set[str]) -> str:
    parts = folder.split("/")
    named = (n for n, part in enumerate(parts, 1) if part and as_name(part) in words)
    return "/".join(parts[: next(named, 0)])


def _others(folders: Iterable[str], positive: set[str]) -> tuple[list[Folder], int]:
    """The largest folders without a picture of the target, and how many lie beside them.

    Many folders side by side, as those of classes, become one.
    """
    above = {above for name in positive for above in _above(name)}
    numbers: Counter[str] = Counter()
    loose: Counter[str] = Counter()
    wnids: Counter[str] = Counter()
    for folder in folders:
        prefixes = [*_above(folder), folder]
        if not positive.isdisjoint(prefixes):
            continue
        other = next((prefix for prefix in prefixes if prefix not in above), None)
        if other is None:
            loose[folder] += 1
        else:
            numbers[other] += 1
            wnids[other] += any(map(is_wnid, folder[len(other) :].split("/")))
    found = []
    by_parent = Counter(map(posixpath.dirname, numbers))
    for parent in sorted(parent for parent, number in by_parent.items() if number > _MOST_FOLDERS):
        within = [name for name in numbers if posixpath.dirname(name) == parent]
        number = sum(map(numbers.pop, within)) + loose.pop(parent, 0)
        skip = sorted(
            posixpath.basename(name)
            for name in positive | above
            if name and posixpath.dirname(name) == parent
        )
        found.append(Folder(parent, number, skip))
    found += [
        Folder(name, number, is_imagenet=wnids[name] == number)
        for name, number in sorted(numbers.items())
    ]
    return found, loose.total()


def _are_wnids(folders: Iterable[str]) -> bool:
    return all(is_wnid(folder.split("/")[0]) for folder in folders)


def _imagenet(root: str, target: str, folders: Sequence[str]) -> Found:
    """A copy of ImageNet, whose classes of the target are known."""
    wnids = [folder.split("/")[0] for folder in folders]
    number = sum(wnid in PRESETS[target].targets for wnid in wnids)
    others = Folder("", len(wnids) - number, is_imagenet=True)
    return Found(root, [Folder("", number, is_imagenet=True)], [others])


def _above(folder: str) -> list[str]:
    """The folders that a folder is in: "", a, a/b for a/b/c."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:depth]) for depth in range(len(parts))]


def _cannot_tell(root: str, target: str, folders: Iterable[str]) -> str:
    counts = Counter(folder.split("/")[0] for folder in folders if folder)
    if all(map(is_wnid, counts)):
        return (
            f"{root}: its folders are classes of ImageNet. Name those of the target in a config, "
            f"under positives: {{name: positives, kind: imagenet, params: {{path: {root}, target: "
            f"{target}, target_wnids: [n...], target_policy: only}}}}; and under sources the same "
            "without target_policy, as a source of all others"
        )
    names = sorted(counts)
    listed = ", ".join(f"{storage.escape(n)} ({counts[n]:,})" for n in names[:_MOST_SHOWN])
    more = f" and {len(names) - _MOST_SHOWN:,} others" if len(names) > _MOST_SHOWN else ""
    return (
        f"{root}: no folder in it is called {target}; there are {listed}{more}. If every picture "
        f"shows the target, add --all. If those of one folder do, rename it to {target}, or give "
        f"that folder: infineg init {root}/{storage.escape(names[0])} --target {target}"
    )


def _enough(found: Found, target: str) -> Found:
    if found.num_positives < _FEWEST:
        raise ConfigError(
            f"{found.root}: {found.num_positives} pictures of {target}; a detector needs "
            f"{_FEWEST} to begin with, and is better with some hundred"
        )
    return found
