"""A data set of pictures as a build makes them, 256 px and quality 90, for measurements.

Photographs are those below the environment's PHOTOS; without it, drawn leaves and fractals.
"""

import itertools
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.dataset import Dataset
from pipeline.dataset.images import Decoded, decode_image
from pipeline.dataset.keys import make_key, sha256_hex
from pipeline.dataset.metadata import Generation, ShardRecord
from pipeline.dataset.schema import ImageSettings, row_schema
from pipeline.dataset.shards import output_group, write_shard
from pipeline.sources import open_source
from support.train_runs import commit_dataset

_PER_SHARD = 500


_JPEG = (".jpg", ".jpeg")


_SETTINGS = ImageSettings(image_size=256)


def write_photo_shards(
    root: Path, images: Sequence[bytes], *, embedding_dim: int = 8, encoder: str = "toy"
) -> Generation:
    """Commits `images` as a train split, every fourth shard positive; embeddings are random."""
    rng = np.random.default_rng(0)
    shards = []
    for number, start in enumerate(range(0, len(images), _PER_SHARD)):
        label = "" if number % 4 else "cat"
        source = "photos" if number % 4 else "my_cat"
        stem = output_group(source=source, split="train", label=label, selected=True, reason=None)
        rows = [
            _row(image, source, label, start + i, rng.normal(size=embedding_dim))
            for i, image in enumerate(images[start : start + _PER_SHARD])
        ]
        file = write_shard(
            Dataset(str(root)), pa.Table.from_pylist(rows, row_schema(embedding_dim)),
            stem=f"{stem}-{number:06d}", targets=("cat",), encoder="toy", round_number=1,
        )  # fmt: skip
        shards.append(ShardRecord(**file.model_dump(), split="train", label=label))
    counts = {"my_cat": 0, "photos": 0}
    for shard in shards:
        counts["my_cat" if shard.label else "photos"] += shard.num_samples
    return commit_dataset(root, ("cat",), encoder, embedding_dim, shards, counts)


def _row(image: bytes, source: str, label: str, ordinal: int, embedding_D: np.ndarray) -> dict:
    unit_D = embedding_D / np.linalg.norm(embedding_D)
    return {
        "key": make_key(source, "p", ordinal), "source": source, "partition": "p",
        "ordinal": ordinal, "uri": f"photo://{ordinal}", "label": label,
        "label_state": "verified_present" if label else "verified_absent",
        "class_name": None, "stratum": None if label else "far", "group": f"{ordinal}",
        "split": "train", "rotation": None, "content_hash": sha256_hex(f"{ordinal}".encode()),
        "perceptual_hash": ordinal, "image": image, "width": 256, "height": 256,
        "embedding": unit_D.astype(np.float16), "similarity": float(unit_D[0]),
        "inclusion_probability": 1.0 if label else 0.5, "selected": True,
    }  # fmt: skip


def some_images(num: int, *, num_different: int = 1000) -> list[bytes]:
    """JPEGs of a data set, `num_different` of them, repeated."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(
            lambda image: decode_image(image, rotation=0, settings=_SETTINGS), _originals()
        )
        usable = (each.image for each in decoded if isinstance(each, Decoded))
        different = list(itertools.islice(usable, num_different))
    return list(itertools.islice(itertools.cycle(different), num))


def _originals(limit: int = 1500) -> Iterator[bytes]:
    photos = os.environ.get("PHOTOS", "")
    if photos:
        paths = sorted(path for path in Path(photos).rglob("*.*") if path.suffix.lower() in _JPEG)
        # Evenly, so that all folders are in it.
        for index in np.linspace(0, len(paths), min(limit, len(paths)), endpoint=False):
            yield paths[int(index)].read_bytes()
        return
    for kind in ("dead_leaves", "fractal"):
        params = {"image_size": 256, "num_pictures": limit // 2}
        source = open_source(kind, params)
        for partition in source.partitions():
            yield from (sample.image for sample in source.read(partition))


class Cost(NamedTuple):
    seconds: float
    megabytes: float  # at its peak, of resident memory, beyond what was taken before
    value: Any  # what the call returned


def cost_of(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Of a function of a module, called in a new process; its result has to be picklable."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, function, arguments).result()


def _measure(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Cost:
    # Else the peak is that of the imports: man 5 proc, /proc/pid/clear_refs.
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _megabytes("VmRSS"), time.perf_counter()
    value = function(*arguments)
    return Cost(time.perf_counter() - began, _megabytes("VmHWM") - before, value)


def _megabytes(name: str) -> float:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1000
