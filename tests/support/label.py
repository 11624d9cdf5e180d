"""A data set to label, on a pool, with pictures of hostile names; and `infineg label` on it."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.loading import load_config
from pipeline.config.schema import Config
from pipeline.curate.label.session import LabelSession
from support.builds import (
    CATS,
    build_inline,
    config_of,
    copy_dataset,
    first_samples,
    folder_entry,
    squares,
    write_config,
)
from support.processes import Command, running_infineg, wait_until
from support.review import HOSTILE_CLASS, HOSTILE_NAME, Served

NUM_STRAYS = 24


@dataclass(frozen=True)
class Labelled:
    """A config of a data set."""

    path: Path
    config: Config

    def session(self, rater: str = "anna") -> LabelSession:
        return LabelSession(self.config, "cat", rater)


def write_labelled(folder: Path) -> Labelled:
    """Builds a data set in which unlabelled cats stray, some of them taken for negatives.

    Pictures of the last source are copies of some of the first, which has fewer of them selected.
    """
    strays = folder / "strays" / HOSTILE_CLASS
    strays.mkdir(parents=True)
    cats = {**CATS, "params": {**CATS["params"], "seed": 7, "num_pictures": NUM_STRAYS}}
    for number, sample in enumerate(first_samples(cats, NUM_STRAYS)):
        (strays / f"{number:03d}{HOSTILE_NAME}.jpg").write_bytes(sample.image)
    others = squares(num_pictures=400, per_partition=100)
    copies = folder / "copies"
    copies.mkdir()
    for number, sample in enumerate(first_samples(others, 60)):
        (copies / f"{number:03d}.png").write_bytes(sample.image)
    entries = [
        folder_entry("copies", copies, weight=0.1, label_state="verified_absent"),
        folder_entry("strays", folder / "strays"),
        others,
    ]
    config = config_of(
        folder / "data",
        entries,
        pool=str(folder / "pool"),
        build={"keep_embeddings": False},
        split={"val": 0.1, "test": 0.1},
    )
    build_inline(config)
    return Labelled(write_config(folder / "config.yaml", config), config)


def copy_labelled(labelled: Labelled, folder: Path) -> Labelled:
    """A copy of the data set, on the same pool."""
    root = copy_dataset(Path(labelled.config.output.path), folder / "data")
    output = labelled.config.output.model_copy(update={"path": str(root)})
    config = labelled.config.model_copy(update={"output": output})
    path = write_config(folder / "config.yaml", config)
    return Labelled(path, load_config(str(path)))


def is_cat(picture: dict[str, Any]) -> bool:
    """The truth."""
    return bool(picture["source"] == "strays")


def rate_round(session: LabelSession) -> list[dict[str, Any]]:
    """Says the truth of all pictures of the round; returns them."""
    pictures: list[dict[str, Any]] = session.state()["pictures"]
    session.decide({each["id"]: "positive" if is_cat(each) else "negative" for each in pictures})
    return pictures


@dataclass(frozen=True)
class ServedLabels(Served):
    process: Command


@contextlib.contextmanager
def serve_labels(
    labelled: Labelled, log: Path, *options: object, rater: str = "anna"
) -> Iterator[ServedLabels]:
    log.unlink(missing_ok=True)
    arguments = ("label", labelled.path, "--rater", rater, "--port", 0, *options)
    with running_infineg(*arguments, log=log) as process:
        wait_until(lambda: "Every verdict" in log.read_text(), process, log)
        found = re.search(r"http://\S+/", log.read_text())
        assert found
        yield ServedLabels(found[0], process)


def simulated_embeddings(
    num: int, dim: int, rng: np.random.Generator, *, towards: float = 0.0
) -> "np.ndarray[Any, np.dtype[np.float16]]":
    """L2-normalised, the first axis shifted: 0 for no class."""
    values = rng.standard_normal((num, dim)).astype(np.float32)
    values[:, 0] += towards
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)
