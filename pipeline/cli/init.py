"""`infineg init`: writes a config, with comments, for a folder of pictures that was looked at."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.cli.layout import Folder, Found, as_name
from pipeline.errors import ConfigError
from pipeline.sources.kinds.imagenet.classes import PRESETS
from pipeline.sources.readers.text import visible

_FEW = 50
_NEGATIVES_PER_POSITIVE = 10
_BUDGETS = range(300, 3001)  # training negatives in all: minutes on a laptop
_MOST_TARS = 8  # that are named in the config


def target_name(text: str) -> str:
    """Raises ConfigError if nothing is left of it."""
    if not (name := as_name(text)):
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
    yield f"# Written by `infineg init`. Next: infineg run {visible(shlex.quote(path))}"
    yield "# which builds the data set, trains, measures, and says where the report is. Change what"
    yield "# you like and run it again: what is finished is not done again."
    yield ""
    yield f"target: {{name: {target}}}"
    yield ""
    yield "positives:"
    names: set[str] = set()
    for folder in found.positives:
        yield f"  # {folder.num_pictures:,} pictures"
        policy = {"target_policy": "only"} if folder.is_imagenet else {}
        yield _entry(found, folder, _unique("positives", names), target, policy)
    yield ""
    yield "sources:"
    if found.others:
        yield "  # Pictures of anything else. One that looks like the target is set aside for"
        yield "  # `infineg review` and never becomes a negative."
    for folder in found.others:
        yield f"  # {folder.num_pictures:,} pictures" + _of_imagenet(folder, target)
        yield _entry(found, folder, _unique(as_name(folder.name) or "others", names), target)
    if not found.others:
        yield "  # No photographs but the positives: the detector learns from drawings only, and"
        yield "  # takes much that it has never seen for the target. Add one of those below."
    yield "  # Drawings of things and squares, so that it is not surest where it knows nothing."
    yield "  - {name: drawn_things, kind: shapes, params: {content: [far]}, weight: 0.5}"
    yield "  - {name: squares, kind: squares, weight: 0.2}"
    yield from _more_streams(found, target)
    yield ""
    yield from _settings(found, target)


def _of_imagenet(folder: Folder, target: str) -> str:
    if not folder.is_imagenet or target in PRESETS:
        return ""
    return (
        ", in folders of ImageNet. If its classes have the target, leave these out:\n"
        f"  # kind: imagenet, and in params target: {target}, target_wnids: [n00000000]"
    )


def _more_streams(found: Found, target: str) -> Iterator[str]:
    wnids = classes = ""
    if target not in PRESETS:  # else both know by themselves
        wnids = f", target: {target}, target_wnids: [n00000000]"
        classes = (
            f", target: {target},\n  #    target_classes: [{target.replace('_', ' ').title()}]"
        )
    yield "  # More streams of pictures, each without its #. The more kinds, the better:"
    if found.tars:
        urls = [storage.join(found.root, name) for name in found.tars[:_MOST_TARS]]
        yield f"  # - {{name: tars, kind: webdataset, params: {{urls: {json.dumps(urls)}}}}}"
    yield "  # - {name: more, kind: image_folder, params: {path: /path/to/any/folder}}"
    yield f"  # - {{name: imagenet, kind: imagenet, params: {{path: /path/to/imagenet{wnids}}}}}"
    yield "  # - {name: open_images, kind: open_images, max_candidates: 100_000,"
    yield (
        "  #    params: {path: s3://open-images-dataset, metadata: /path/to/labels" + classes + "}}"
    )
    yield "  # - {name: dishes, kind: huggingface, params: {path: ethz/food101}}"


def _settings(found: Found, target: str) -> Iterator[str]:
    total = max(_BUDGETS[0], min(_BUDGETS[-1], _NEGATIVES_PER_POSITIVE * found.num_positives))
    yield "# Training negatives of each source of weight 1, chosen from all of its pictures."
    budget = -(-total // max(1, len(found.others)))
    yield f"selection: {{budget: {budget}, eval_budget: 300, candidates_per_selected: 4,"
    yield "            pilot: 200}"
    # With few, most are for training: all but those of test are measured, too, cross-fitted.
    share = 0.2 if found.num_positives >= _FEW else 0.1
    yield f"split: {{val: {share}, test: {share}}}"
    yield f"output: {{path: data/{target}}}"
    yield f"train: {{run: runs/{target}}}"
    yield "# The share of other pictures that may be called the target."
    yield "evaluate: {alpha: 0.01}"


def _entry(
    found: Found, folder: Folder, name: str, target: str, more: dict[str, Any] | None = None
) -> str:
    where = storage.join(found.root, folder.name) if folder.name else found.root
    params: dict[str, Any] = {"path": where, **(more or {})}
    if folder.skip:
        params["skip_folders"] = list(folder.skip)
    # JSON is YAML, too, whatever is in it.
    text = ", ".join(f"{key}: {json.dumps(value)}" for key, value in params.items())
    if "${" in text:
        raise ConfigError(f"{where}: ${{...}} is a variable in a config; rename the folder")
    kind = "imagenet" if folder.is_imagenet and target in PRESETS else "image_folder"
    return f"  - {{name: {name}, kind: {kind}, params: {{{text}}}}}"


def _unique(name: str, taken: set[str]) -> str:
    number, chosen = 1, name[:56]
    while chosen in taken:
        number += 1
        chosen = f"{name[:56]}_{number}"
    taken.add(chosen)
    return chosen
