"""A data set whose pictures are taken down between other events, and what is left of a picture."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.schema import Config
from pipeline.curate.takedown import take_down
from pipeline.curate.verdicts import Verdict, apply_verdicts
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.keys import sha256_hex
from pipeline.dataset.metadata import TakenDown
from pipeline.errors import ConfigError
from support.builds import (
    CATS,
    build_inline,
    config_of,
    first_samples,
    folder_entry,
    sidecar_rows,
    squares,
)
from support.crashes import crash_build
from support.mined_world import ledger_rows

NUM_FIRST, NUM_STRAYS = 60, 12
FIRST = squares("first", num_pictures=NUM_FIRST, per_partition=20)
SECTIONS = {"selection": {"budget": 30, "pilot": 30}, "output": {"samples_per_shard": 20}}
# Reads of each source; none may be lost or doubled by any event.
NUM_READ = {"cats": 48, "first": NUM_FIRST, "strays": NUM_STRAYS, "mirror": NUM_FIRST + NUM_STRAYS}


@dataclass(frozen=True)
class Picture:
    """A sample of a data set that was not disturbed, and what was made of it."""

    key: str
    uri: str
    content_hash: str
    image: bytes | None  # as in the source, if that is known
    stored: bytes | None  # as in a shard, if it is in one
    embedding: bytes


@dataclass(frozen=True)
class Inputs:
    """Sources, by name: `mirror` has the bytes of all others under other names."""

    entries: Mapping[str, dict[str, Any]]
    victims: Mapping[str, Picture]  # by what they are

    def config(self, root: Path | str, names: Sequence[str], **first: Any) -> Config:
        entries = [{**self.entries[n], **(first if n == "first" else {})} for n in names]
        return config_of(root, entries, **SECTIONS)


def make_inputs(folder: Path) -> Inputs:
    strays, mirror = folder / "strays", folder / "mirror"
    strays.mkdir(parents=True)
    mirror.mkdir()
    unseen = {**CATS, "params": {**CATS["params"], "seed": 7}}
    pictures = [sample.image for sample in first_samples(unseen, NUM_STRAYS)]
    for number, image in enumerate(pictures):
        (strays / f"{number:02d}.png").write_bytes(image)
    pictures += [sample.image for sample in first_samples(FIRST, NUM_FIRST)]
    for number, image in enumerate(pictures):
        (mirror / f"same-{number:03d}.png").write_bytes(image)
    entries = {
        "first": FIRST,
        "strays": folder_entry("strays", strays),
        "mirror": folder_entry("mirror", mirror, label_state="verified_absent"),
    }
    inputs = Inputs(entries, {})
    build_inline(inputs.config(folder / "undisturbed", list(entries)))
    pictures += [sample.image for sample in first_samples(CATS, 48)]
    images = {sha256_hex(image): image for image in pictures}
    return Inputs(entries, _choose_victims(folder / "undisturbed", images))


def _choose_victims(root: Path, images: Mapping[str, bytes]) -> dict[str, Picture]:
    rows = ledger_rows(root, Dataset(str(root)).read_generation()).to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    selected = [row for row in train if row["source"] == "first" and row["selected"]]
    shard_of = {
        key: file.path
        for file in Dataset(str(root)).read_generation().shards
        for key in Dataset(str(root)).read_sidecar(file)["key"].to_pylist()
    }
    chosen = {
        "selected": selected[0],
        "neighbour": next(
            row for row in selected[1:] if shard_of[row["key"]] == shard_of[selected[0]["key"]]
        ),
        "passed over": next(
            row for row in train
            if row["source"] == "first" and not row["selected"] and row["reject_reason"] is None
        ),
        "suspect": next(row for row in train if row["reject_reason"] == "suspected_positive"),
        "positive": next(row for row in train if row["source"] == "cats" and row["selected"]),
    }  # fmt: skip
    return {
        what: picture_of(root, row, images[row["content_hash"]]) for what, row in chosen.items()
    }


def picture_of(root: Path, row: Mapping[str, Any], image: bytes | None = None) -> Picture:
    """The picture of a ledger row of the latest generation."""
    dataset, content_hash, stored = Dataset(str(root)), row["content_hash"], None
    generation = dataset.read_generation()
    for file in (*generation.shards, *generation.quarantine):
        for held in dataset.read_table(file.sidecar_path).to_pylist():
            if held["content_hash"] == content_hash:
                tar, start = (root / file.path).read_bytes(), held["tar_offset"]
                stored = tar[start : start + held["tar_size"]]
    embedding = next(
        each["embedding"]
        for path in root.glob("embeddings/*/*/*.parquet")
        for each in pq.read_table(path).to_pylist()
        if each["content_hash"] == content_hash
    )
    return Picture(
        row["key"], row["uri"], content_hash, image, stored,
        np.array(embedding, np.float16).tobytes(),
    )  # fmt: skip


def traces_of(root: Path, *pictures: Picture, exempt: str = "generations/") -> list[str]:
    """Files below a folder that hold a picture, its embedding or its hash, and which of them.

    exempt: may hold the hash, by which it is refused.
    """
    found = []
    for path in sorted(root.rglob("*")):
        if not path.is_file():
            continue
        name, content = str(path.relative_to(root)), path.read_bytes()
        if path.suffix == ".parquet":
            content += b"".join(_values(pq.read_table(io.BytesIO(content))))
        for picture in pictures:
            made = {"image": picture.image, "stored image": picture.stored}
            made |= {"embedding": picture.embedding, "hash": picture.content_hash.encode()}
            for what, value in made.items():
                is_allowed = what == "hash" and name.startswith(exempt)
                if value is not None and value in content and not is_allowed:
                    found.append(f"{name}: {what}")
    return found


def _values(rows: pa.Table) -> list[bytes]:
    """What is in a table, without its compression."""
    found = []
    for column in rows.columns:
        for value in column.to_pylist():
            if isinstance(value, list):
                found.append(np.array(value, np.float16).tobytes())
            elif isinstance(value, str | bytes):
                found.append(value.encode() if isinstance(value, str) else value)
    return found


EVENTS = (
    "build", "build all", "mirror", "drop", "add", "reweigh",
    "kill at part", "kill at ledger", "kill at sidecar", "kill at generation",
    "take down", "purge", "review",
)  # fmt: skip


@dataclass
class Life:
    """A data set through events; `check` holds after each of them."""

    root: Path
    inputs: Inputs
    sources: list[str] = field(default_factory=lambda: ["first", "strays"])
    weight: float = 1.0
    refused: dict[str, Picture] = field(default_factory=dict)  # taken down, by hash
    purged: dict[str, Picture] = field(default_factory=dict)
    is_built: bool = False  # as the config says

    @property
    def config(self) -> Config:
        return self.inputs.config(self.root, self.sources, weight=self.weight)

    def happen(self, event: str, picture: Picture) -> None:
        match event.partition(" at "):
            case ("build" | "build all", "", _):
                if event == "build all":
                    self.sources = list(self.inputs.entries)
                build_inline(self.config)
                self.is_built = True
            case ("kill", _, moment):
                self.is_built = not crash_build(self.config, moment, before=False)
            case ("take down" | "purge", "", _):
                self._take_down(picture, purge=event == "purge")
            case ("review", "", _):
                self._drop_suspect()
            case _:
                self._change_config(event)
                self.is_built = False

    def _change_config(self, event: str) -> None:
        names = set(self.sources)
        match event:
            case "mirror":
                names.add("mirror")
            case "add":
                names.add("first")
            case "drop":
                names = (names | {"mirror"}) - {"first"}
            case "reweigh":
                self.weight = 0.3 if self.weight == 1.0 else 1.0
        self.sources = [name for name in self.inputs.entries if name in names]

    def _take_down(self, picture: Picture, *, purge: bool) -> None:
        wanted = TakenDown(keys=frozenset([picture.key]))
        try:
            take_down(str(self.root), wanted, purge=purge)
        except ConfigError as error:
            if "no such sample" not in str(error) and "no data set there" not in str(error):
                raise
            assert picture.content_hash not in self.refused
            return
        self.refused[picture.content_hash] = picture
        if purge:
            self.purged[picture.content_hash] = picture

    def _drop_suspect(self) -> None:
        dataset = Dataset(str(self.root))
        quarantine = dataset.read_latest().quarantine
        picture = self.inputs.victims["suspect"]
        for file in quarantine:
            rows = dataset.read_table(file.sidecar_path)
            for key, content_hash in zip(
                rows["key"].to_pylist(), rows["content_hash"].to_pylist(), strict=True
            ):
                if content_hash == picture.content_hash:
                    verdicts: dict[str, Verdict] = {key: "drop"}
                    apply_verdicts(str(self.root), verdicts, target="cat")
                    self.refused[content_hash] = picture
                    return

    def check(self) -> None:
        if self.purged:
            assert traces_of(self.root, *self.purged.values()) == []
        dataset = Dataset(str(self.root))
        generation = dataset.read_latest()
        if not generation.number:
            return
        tables = [dataset.read_table(f.sidecar_path) for f in generation.quarantine]
        if generation.shards:
            tables.append(sidecar_rows(self.root, generation))
        held = [each for rows in tables for each in rows["content_hash"].to_pylist()]
        assert not self.refused.keys() & set(held)
        if dataset.read_info().latest_generation == generation.number:  # else it is to be finished
            problems = verify_dataset(str(self.root)).problems
            assert not problems, problems
        read = {source.name: source.counts.read for source in generation.sources}
        assert read.items() <= NUM_READ.items(), "none is lost or doubled"
        if self.is_built:
            assert read.keys() == {"cats", *self.sources}
            assert set(self.refused) <= generation.taken_down.content_hashes
