"""`infineg init`: looks at a folder of pictures and writes a config for it, with comments."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.sources.readers.folders import list_images

_FEWEST = 10  # positives: with fewer, nothing is left to measure a detector with
_SPLITS = {"train", "training", "val", "valid", "validation", "test"}
_FEW = 50
_NEGATIVES_PER_POSITIVE = 10
_BUDGETS = range(300, 3001)  # training negatives in all: minutes on a laptop
_MOST_SHOWN = 8


@dataclass(frozen=True)
class Folder:
    """Pictures below a folder; `name` is relative to the one that was looked at, "" for itself."""

    name: str
    num_pictures: int


@dataclass(frozen=True)
class Found:
    """What a folder holds: pictures of the target, others, and those that nothing is known of."""

    root: str
    positives: Sequence[Folder]
    others: Sequence[Folder]
    num_loose: int = 0  # beside the folders

    @property
    def num_positives(self) -> int:
        return sum(folder.num_pictures for folder in self.positives)


def look(root: str, target: str, *, is_all: bool = False) -> Found:
    """A folder named like the target holds its pictures, the folders beside it hold others.

    Without folders, or with is_all, every picture shows the target. Folders for splits are looked
    into. Raises ConfigError if it cannot tell, or for fewer than 10 pictures of the target.
    """
    if not storage.list_visible(root):
        raise ConfigError(f"{root}: no such folder, or nothing is in it")
    names = list_images(root, field="PHOTOS")
    counts = Counter(_folder_of(name) for name in names)
    folders = [Folder(name, number) for name, number in sorted(counts.items()) if name]
    if is_all or not folders:
        return _enough(Found(root, [Folder("", len(names))], []), target)
    positives = [folder for folder in folders if _is_named(folder.name, target)]
    if not positives:
        raise ConfigError(_cannot_tell(root, target, folders))
    others = [folder for folder in folders if folder not in positives]
    return _enough(Found(root, positives, others, counts[""]), target)


def _folder_of(name: str) -> str:
    """The first folder of a path, or the second below one for a split; "" for a loose file."""
    parts = name.split("/")[:-1]
    depth = 2 if len(parts) > 1 and parts[0].lower() in _SPLITS else 1
    return "/".join(parts[:depth])


def _is_named(folder: str, target: str) -> bool:
    words = _as_name(folder.rpartition("/")[2])
    return words in (target, f"{target}s", f"{target}es")


def _as_name(text: str) -> str:
    """As names of targets and sources are written: lower case, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _cannot_tell(root: str, target: str, folders: Sequence[Folder]) -> str:
    listed = ", ".join(f"{storage.escape(f.name)} ({f.num_pictures:,})" for f in
                       folders[:_MOST_SHOWN])  # fmt: skip
    more = f" and {len(folders) - _MOST_SHOWN:,} others" if len(folders) > _MOST_SHOWN else ""
    return (
        f"{root}: no folder in it is called {target}; there are {listed}{more}. If every picture "
        f"shows a {target}, add --all. If those of one folder do, rename it to {target}, or give "
        f"that folder: infineg init {root}/{storage.escape(folders[0].name)} --target {target}"
    )


def _enough(found: Found, target: str) -> Found:
    if found.num_positives < _FEWEST:
        raise ConfigError(
            f"{found.root}: {found.num_positives} pictures of a {target}; a detector needs "
            f"{_FEWEST} to begin with, and is better with some hundred"
        )
    return found


def target_name(text: str) -> str:
    """Raises ConfigError if nothing is left of it."""
    if not (name := _as_name(text)):
        raise ConfigError(f"--target {text}: give a name of letters and digits, such as red_panda")
    return name[:64]


def write_config(found: Found, target: str, path: str) -> None:
    """Raises ConfigError if the file is there already."""
    text = "\n".join(_lines(found, target, path)) + "\n"
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; give another name with --out") from None


def _lines(found: Found, target: str, path: str) -> Iterator[str]:
    wnids = classes = ""
    if target != "cat":  # which both know by themselves
        wnids = f", target: {target}, target_wnids: [n00000000]"
        classes = (
            f", target: {target},\n  #    target_classes: [{target.replace('_', ' ').title()}]"
        )
    total = max(_BUDGETS[0], min(_BUDGETS[-1], _NEGATIVES_PER_POSITIVE * found.num_positives))
    yield f"# Written by `infineg init`. Next: infineg run {path}"
    yield "# which builds the data set, trains, measures, and says where the report is. Change what"
    yield "# you like and run it again: what is finished is not done again."
    yield ""
    yield f"target: {{name: {target}}}"
    yield ""
    yield "positives:"
    names: set[str] = set()
    for folder in found.positives:
        yield f"  # {folder.num_pictures:,} pictures"
        yield _entry(found, folder, _unique("positives", names))
    yield ""
    yield "sources:"
    if found.others:
        yield f"  # Pictures of anything else. One that looks like a {target} is set aside for"
        yield "  # `infineg review` and never becomes a negative."
    for folder in found.others:
        yield f"  # {folder.num_pictures:,} pictures"
        yield _entry(found, folder, _unique(_as_name(folder.name) or "others", names))
    if not found.others:
        yield "  # No photographs but the positives: the detector learns from drawings only, and"
        yield "  # takes much that it has never seen for the target. Add one of those below."
    yield "  # Drawings of things and squares, so that it is not surest where it knows nothing."
    yield "  - {name: drawn_things, kind: shapes, params: {content: [far]}, weight: 0.5}"
    yield "  - {name: squares, kind: squares, weight: 0.2}"
    yield "  # More streams of pictures, each without its #. The more kinds, the better:"
    yield "  # - {name: more, kind: image_folder, params: {path: /path/to/any/folder}}"
    yield f"  # - {{name: imagenet, kind: imagenet, params: {{path: /path/to/imagenet{wnids}}}}}"
    yield "  # - {name: open_images, kind: open_images, max_candidates: 100_000,"
    yield (
        "  #    params: {path: s3://open-images-dataset, metadata: /path/to/labels" + classes + "}}"
    )
    yield "  # - {name: dishes, kind: huggingface, params: {path: ethz/food101}}"
    yield ""
    num_sources = max(1, len(found.others))
    yield "# Training negatives of each source of weight 1, chosen from all of its pictures."
    budget = -(-total // num_sources)
    yield f"selection: {{budget: {budget}, eval_budget: 300, candidates_per_selected: 4,"
    yield "            pilot: 200}"
    # With few, most are for training: all but those of test are measured, too, cross-fitted.
    share = 0.2 if found.num_positives >= _FEW else 0.1
    yield f"split: {{val: {share}, test: {share}}}"
    yield f"output: {{path: data/{target}}}"
    yield f"train: {{run: runs/{target}}}"
    yield "# The share of other pictures that may be called the target."
    yield "evaluate: {alpha: 0.01}"


def _entry(found: Found, folder: Folder, name: str) -> str:
    where = storage.join(found.root, folder.name) if folder.name else found.root
    if "${" in where:
        raise ConfigError(f"{where}: ${{...}} is a variable in a config; rename the folder")
    path = json.dumps(where)  # which is YAML, too, whatever is in it
    return f"  - {{name: {name}, kind: image_folder, params: {{path: {path}}}}}"


def _unique(name: str, taken: set[str]) -> str:
    number, chosen = 1, name[:56]
    while chosen in taken:
        number += 1
        chosen = f"{name[:56]}_{number}"
    taken.add(chosen)
    return chosen
