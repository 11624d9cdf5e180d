"""The data sets of a study, each built by `pipeline.build` of the same images and embeddings.

One a seed, number of positives and way of choosing negatives; one generation of it a budget.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.build.driver import build
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.schema import Split
from study.photos import (
    Photo,
    Photos,
    assign_splits,
    take_positives,
    thin_out,
    write_table,
)
from study.settings import NEGATIVE_SHARES, POSITIVE_SHARES, Settings
from train.data.rows import embeddings_of

TARGET = "cat"
HELD_OUT = "look_alikes"  # begins the name of the source of those that are not in the stream
_FRACTIONS: dict[Split, float] = {"train": 1 - sum(NEGATIVE_SHARES.values()), **NEGATIVE_SHARES}
_ALL = 1_000_000  # val and test keep every negative


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which images a model is trained on. beta 0 is uniform; near_share: see `thin_out`."""

    seed: int
    near_share: float | None
    num_positives: int
    beta: float
    budget: int
    mined_budget: int = 0  # chosen by a model trained on `budget`; see `mining`

    @property
    def stream(self) -> str:
        """Identifies the images to choose from."""
        return f"s{self.seed}_{'common' if self.near_share is None else 'rare'}"

    @property
    def name(self) -> str:
        """The name of the data set; budgets are its generations."""
        mined = f"-m{self.mined_budget}" if self.mined_budget else ""
        return f"{self.stream}-n{self.num_positives}-b{self.beta:g}{mined}"


@dataclass(frozen=True)
class Built:
    """A generation of a data set on disk, and its config."""

    config: Config
    generation: int

    @property
    def root(self) -> str:
        return self.config.output.path


class DataSets:
    """Builds data sets into `out`/data, each once."""

    def __init__(self, settings: Settings, photos: Photos, out: Path) -> None:
        self._settings = settings
        self._photos = photos
        self._out = out

    @property
    def num_train_positives(self) -> int:
        splits = assign_splits(self._photos.positives, seed=0, shares=POSITIVE_SHARES)
        return list(splits.values()).count("train")

    @property
    def num_train_negatives(self) -> int:
        """Of the smallest stream."""
        return list(self._stream(0, self._settings.near_share)[1].values()).count("train")

    def get(self, choice: Choice) -> Built:
        """Builds it if it does not exist. Raises what `build` raises."""
        config = self.config_of(choice)
        record = self.record_of(choice, f"{choice.budget}")
        if record.exists():
            return Built(config, json.loads(record.read_text())["generation"])
        base = self._base_of(choice)
        if base is not None:
            self.get(base)
        generation, _ = build(config)
        storage.write_atomic(str(record), json.dumps({"generation": generation.number}).encode())
        return Built(config, generation.number)

    def record_of(self, choice: Choice, what: str) -> Path:
        """The file with the number of a generation, of a budget or mined."""
        return self._out / "data" / f"{choice.name}.{what}.json"

    def stream_source(self, choice: Choice) -> str:
        """The source that negatives are chosen from."""
        return f"stream_{choice.stream}"

    def config_of(self, choice: Choice) -> Config:
        base = self._base_of(choice)
        stream, splits, left = self._stream(choice.seed, choice.near_share)
        sources = {self.stream_source(choice): stream}
        if left:
            splits |= dict.fromkeys((photo.content_hash for photo in left), "test")
            sources[f"{HELD_OUT}_{choice.stream}"] = left
        return Config.model_validate(
            {
                "target": {"name": TARGET},
                "positives": [self._positives_entry(choice)],
                "sources": [
                    {**self._entry(name, photos, splits), "label_state": "verified_absent"}
                    for name, photos in sources.items()
                ],
                "encoder": self._settings.encoder,
                "selection": {
                    "mode": "similarity" if choice.beta else "uniform",
                    "beta": choice.beta,
                    "budget": choice.budget,
                    "eval_budget": _ALL,
                    "pilot": self._settings.pilot,
                    "seed": choice.seed,
                },
                "split": NEGATIVE_SHARES,
                "output": {
                    "path": str(self._out / "data" / choice.name),
                    "image_size": self._settings.image_size,
                },
                "build": {
                    "embeddings_from": None if base is None else str(self._out / "data" / base.name)
                },
            }
        )

    def embeddings(self, built: Built) -> dict[str, NDArray[np.float16]]:
        """content hash -> embedding_D, of every negative that a build has read."""
        found: dict[str, NDArray[np.float16]] = {}
        for source in built.config.sources:
            folder = f"embeddings/{source.name}"
            for name in storage.list_files(storage.join(built.root, folder), (".parquet",)):
                table = Dataset(built.root).read_table(
                    f"{folder}/{name}", ("content_hash", "embedding")
                )
                table = table.filter(table["embedding"].is_valid())
                embedding_ND = embeddings_of(table)
                found |= dict(zip(table["content_hash"].to_pylist(), embedding_ND, strict=True))
        return found

    def train_photos(self, seed: int, folder: str) -> dict[str, str]:
        """content hash -> kind, of the negatives below a folder that are not held out where the
        stream has its part of all of them."""
        stream, splits, _ = self._stream(seed, None)
        return {
            photo.content_hash: photo.kind
            for photo in stream
            if splits[photo.content_hash] == "train" and photo.kind.startswith(f"{folder}/")
        }

    def _base_of(self, choice: Choice) -> Choice | None:
        """The choice whose data set has already embedded the same images; None for the first."""
        uniform = replace(choice, beta=0.0, budget=self._settings.budgets[0], mined_budget=0)
        if choice.beta:
            return uniform
        numbers = self._settings.positives
        if choice.near_share is None:
            numbers = self._settings.common_positives
        first = min(min(numbers), self.num_train_positives)
        return None if choice.num_positives == first else replace(uniform, num_positives=first)

    def _stream(
        self, seed: int, near_share: float | None
    ) -> tuple[list[Photo], dict[str, Split], list[Photo]]:
        """The stream, its splits, and the look-alikes that are not in it."""
        stream, left = thin_out(self._photos.negatives, seed=seed, near_share=near_share)
        return stream, assign_splits(stream, seed=seed, shares=NEGATIVE_SHARES), left

    def _positives_entry(self, choice: Choice) -> dict[str, object]:
        photos, seed = self._photos.positives, choice.seed
        splits = assign_splits(photos, seed=seed, shares=POSITIVE_SHARES)
        taken = take_positives(photos, splits, seed=seed, number=choice.num_positives)
        # Not just `cats`: another seed or number means other images, which a cache of
        # embeddings must not confuse.
        return self._entry(f"cats_s{seed}_n{choice.num_positives}", taken, splits)

    def _entry(
        self, name: str, photos: Sequence[Photo], splits: Mapping[str, Split]
    ) -> dict[str, object]:
        """A source entry of the config, and its table."""
        path = self._out / "data" / f"{name}.parquet"
        if not path.exists():
            write_table(path, photos, splits, fractions=_FRACTIONS)
        params = {
            "urls": str(path), "image_column": "image", "label_column": "kind",
            "group_column": "group", "rows_per_partition": 64,
        }  # fmt: skip
        return {"name": name, "kind": "parquet", "params": params}
