"""A small data set of drawn pictures and odd files, and ways to build it.

`build_inline` runs the whole pipeline in this process and takes tasks in reverse order, so that
what it writes must not depend on the order; the tests of Ray compare with it byte for byte.
"""

import contextlib
import functools
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pydantic import BaseModel

import pipeline.build.driver
import pipeline.build.pool
from pipeline import storage
from pipeline.build.pool import PooledCounts
from pipeline.config.build import BuildConfig
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from pipeline.dataset.schema import RawSample
from pipeline.encoders.runtimes import PreparedEncoder
from pipeline.sources import open_source
from pipeline.sources.generated import shapes
from support.corpus import odd_but_usable, unusable
from support.pictures import first_pictures

# Small, the same everywhere; its embeddings tell little, which these tests do not need.
ENCODER = {
    "name": "timm/test_efficientnet",
    "weights": "random",
    "image_size": 64,
    "batch_size": 16,
}
CATS = {
    "name": "cats",
    "kind": "shapes",
    "params": {
        "content": ["cat"], "image_size": 64, "num_pictures": 48, "pictures_per_partition": 16,
    },
}  # fmt: skip
SAMPLES_PER_SHARD = 20
# What of the folder `odd` is rejected, and what of `strays` must be suspected.
NUM_STRAY_CATS = 16


@dataclass(frozen=True)
class Built:
    """A data set, what it was built from, and what the build returned. Not to be changed."""

    root: Path
    entries: list[dict[str, Any]]
    config: Config
    generation: Generation


def squares(
    name: str = "squares", *, num_pictures: int, per_partition: int = 256, seed: int = 0
) -> dict[str, Any]:
    """An entry of cheap negatives."""
    params = {
        "image_size": 32,
        "num_pictures": num_pictures,
        "pictures_per_partition": per_partition,
        "seed": seed,
    }
    return {"name": name, "kind": "squares", "params": params}


def folder_entry(name: str, path: Path, **fields: Any) -> dict[str, Any]:
    return {"name": name, "kind": "image_folder", "params": {"path": str(path)}, **fields}


def config_of(out: Path | str, sources: Sequence[Mapping[str, Any]], **sections: Any) -> Config:
    """A config of cats against `sources`; sections are merged into small defaults."""
    data: dict[str, Any] = {
        "target": {"name": "cat"},
        "positives": [CATS],
        "sources": list(sources),
        "encoder": ENCODER,
        "selection": {"budget": 60, "pilot": 100},
        "output": {"path": str(out), "image_size": 64, "samples_per_shard": SAMPLES_PER_SHARD},
        "build": {"workers": 1},
    }
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) else section
    return Config.model_validate(data)


def write_config(path: Path, config: Config) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def write_inputs(folder: Path) -> list[dict[str, Any]]:
    """Writes folders of odd and of unlabelled files; returns entries of all four negatives."""
    odd, strays = folder / "odd", folder / "strays"
    odd.mkdir(parents=True)
    strays.mkdir()
    for name, image in odd_but_usable().items():
        (odd / f"{name}.jpg").write_bytes(image)
    for name, (image, _) in unusable().items():
        (odd / f"{name}.jpg").write_bytes(image)
    (odd / "a_positive_again.jpg").write_bytes(first_samples(CATS, 1)[0].image)
    unseen_cats = {**CATS, "params": {**CATS["params"], "seed": 7}}
    others = squares(num_pictures=NUM_STRAY_CATS, seed=7)
    for number, sample in enumerate(
        first_samples(unseen_cats, NUM_STRAY_CATS) + first_samples(others, NUM_STRAY_CATS)
    ):
        (strays / f"{number:03d}.jpg").write_bytes(sample.image)
    drawn = {
        "content": ["near", "far"],
        "image_size": 64,
        "num_pictures": 160,
        "pictures_per_partition": 40,
    }
    return [
        squares(num_pictures=1200, per_partition=600),
        {"name": "drawn", "kind": "shapes", "params": drawn},
        folder_entry("odd", odd, label_state="verified_absent"),
        folder_entry("strays", strays),
    ]


def first_samples(entry: Mapping[str, Any], number: int) -> list[RawSample]:
    with drawing_once():
        return first_pictures(open_source(entry["kind"], entry["params"]), number)


class InlineCluster:
    """Runs tasks here, the last one first; each is pickled as on its way to a worker."""

    config = BuildConfig(embed_on="worker")
    num_workers = 1

    def expect(self, num_images: int) -> None:
        pass

    def share(self, encoder: PreparedEncoder) -> PreparedEncoder:
        return encoder

    def map(
        self,
        method: Callable[[Any, Any], Iterator[pa.Table]],
        tasks: Iterable[BaseModel],
        *,
        make_worker: Callable[[], Any],
    ) -> Iterator[pa.Table]:
        worker = make_worker()
        for task in reversed(list(tasks)):
            yield from method(worker, pickle.loads(pickle.dumps(task)))


_sample = shapes.Source.sample


@functools.cache
def _drawn(params: shapes.Params, index: int) -> RawSample:
    return _sample(shapes.Source(params), index)


@contextlib.contextmanager
def drawing_once() -> Iterator[None]:
    """Each cat is drawn once a process: to draw it again is half the work of a small build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes.Source, "sample", lambda self, index: _drawn(self._params, index))
        yield


@contextlib.contextmanager
def open_inline(config: BuildConfig) -> Iterator[InlineCluster]:  # noqa: ARG001
    with drawing_once():
        yield InlineCluster()


def build_inline(
    config: Config,
    *,
    only: Sequence[str] = (),
    follow: bool = False,
    accept_changes: bool = False,
) -> Generation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.build.driver, "open_cluster", open_inline)
        return pipeline.build.driver.build(
            config, only=only, follow=follow, accept_changes=accept_changes
        )[0]


def fill_pool_inline(config: Config, *, only: Sequence[str] = ()) -> list[PooledCounts]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.build.pool, "open_cluster", open_inline)
        return pipeline.build.pool.build_pool(config, only=only)


def built_inline(root: Path, entries: list[dict[str, Any]], **sections: Any) -> Built:
    config = config_of(root, entries, **sections)
    return Built(root, entries, config, build_inline(config))


# All that a data set promises to keep: plans hold measured times, dataset.json may lag a crash.
_KEPT = ("shards/", "quarantine/", "ledger/", "hashes/", "generations/", "reference", "_info.json")


def file_hashes(root: Path | str, prefixes: tuple[str, ...] = _KEPT) -> dict[str, str]:
    """sha256 of the files of a data set whose paths begin so."""
    return {
        name: storage.sha256_of(storage.join(str(root), name))
        for name in storage.list_files(str(root))
        if name.startswith(prefixes)
    }


def sidecar_rows(root: Path | str, generation: Generation | None = None) -> pa.Table:
    """Rows of all shards."""
    generation = generation or Dataset(str(root)).read_generation()
    return pa.concat_tables(Dataset(str(root)).read_sidecar(s) for s in generation.shards)


def copy_dataset(root: Path, to: Path) -> Path:
    return Path(shutil.copytree(root, to))
