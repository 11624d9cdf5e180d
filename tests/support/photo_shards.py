"""A data set of pictures as a build makes them, 256 px and quality 90, for measurements.

Photographs are those below the environment's PHOTOS; without it, drawn leaves and fractals.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.dataset.images import Decoded, decode_image
from pipeline.dataset.metadata import Generation
from pipeline.dataset.schema import ImageSettings
from pipeline.sources import open_source
from support.pictures import first_pictures
from support.tables import selected_rows
from support.train_runs import commit_dataset, write_shards

_JPEG = (".jpg", ".jpeg")
_SETTINGS = ImageSettings(image_size=256)


def write_photo_shards(
    root: Path, images: Sequence[bytes], *, embedding_dim: int = 8, encoder: str = "toy"
) -> Generation:
    """Commits `images` as a train split, a quarter positive; embeddings are random."""
    rng, cut = np.random.default_rng(0), len(images) // 4
    shards = []
    for source, label, chosen in (("my_cat", "cat", images[:cut]), ("photos", "", images[cut:])):
        embedding_ND = rng.normal(size=(len(chosen), embedding_dim))
        embedding_ND /= np.linalg.norm(embedding_ND, axis=1, keepdims=True)
        rows = selected_rows(
            source, label, embedding_ND, chosen, perceptual_hash=range(len(chosen)), width=256,
            height=256, similarity=embedding_ND[:, 0],
            inclusion_probability=1.0 if label else 0.5, stratum=None if label else "far",
        )  # fmt: skip
        shards += write_shards(root, rows, samples_per_shard=500)
    return commit_dataset(root, encoder, shards)


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
    if photos := os.environ.get("PHOTOS"):
        paths = sorted(path for path in Path(photos).rglob("*.*") if path.suffix.lower() in _JPEG)
        # Evenly, so that all folders are in it.
        for index in np.linspace(0, len(paths), min(limit, len(paths)), endpoint=False):
            yield paths[int(index)].read_bytes()
        return
    for kind in ("dead_leaves", "fractal"):
        source = open_source(kind, {"image_size": 256, "num_pictures": limit // 2})
        yield from (sample.image for sample in first_pictures(source, limit))
