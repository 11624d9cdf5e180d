"""Embeddings of all photographs of a study, computed once and kept in a file.

Shapes: N photographs, V views of each, D embedding.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.preprocessing import crop_any_image
from pipeline.encoders.runtimes import prepare_encoder
from pipeline.telemetry.progress import Progress
from study.photos import Photo, Photos, strata_of

NUM_VIEWS = 4


@dataclass(frozen=True)
class Embedded:
    """Photographs and the embeddings of their views, L2-normalised, in the same order.

    View 0 is the photograph. The others are crops, which make a long stream of few photographs;
    of positives and look-alikes, which are not repeated, they are 0.
    """

    photos: Sequence[Photo]
    embedding_NVD: NDArray[np.float32]


def embed_photos(photos: Photos, path: Path) -> Embedded:
    """Embeds by the default encoder; reads `path` instead if it has the same photographs."""
    every = (*photos.positives, *photos.negatives)
    hashes = [photo.content_hash for photo in every]
    if path.exists():
        with np.load(path) as kept:
            if kept["content_hash"].tolist() == hashes:
                return Embedded(every, kept["embedding"].astype(np.float32))
    encoder = prepare_encoder(EncoderConfig(), gpus_per_worker=0)
    runtime, size = encoder.open(), encoder.config.batch_size
    embedding_NVD = np.zeros((len(every), NUM_VIEWS, encoder.embedding_dim), np.float16)
    places = [
        (n, v)
        for n, photo in enumerate(every)
        for v in range(NUM_VIEWS if _is_repeated(photo) else 1)
    ]
    with Progress("embed", total=len(places), unit="views") as progress:
        for start in range(0, len(places), size):
            batch = places[start : start + size]
            images = [_view(every[n], v) for n, v in batch]
            pixels = [crop_any_image(image, encoder.preprocessing) for image in images]
            embedding_NVD[tuple(np.transpose(batch))] = runtime.embed(np.stack(pixels))
            progress.advance(len(batch))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, content_hash=hashes, embedding=embedding_NVD)
    return Embedded(every, embedding_NVD.astype(np.float32))


def _is_repeated(photo: Photo) -> bool:
    return not photo.kind.startswith("cats") and "near" not in strata_of(photo.kind)


def _view(photo: Photo, number: int) -> bytes:
    """The file itself, or a JPEG of a crop with sides of 0.5 to 0.9 of its own."""
    image = Path(photo.path).read_bytes()
    if number == 0:
        return image
    rng = np.random.default_rng([number, int(photo.content_hash[:8], 16)])
    with Image.open(io.BytesIO(image)) as opened:
        whole = opened.convert("RGB")
    width, height = (round(side * rng.uniform(0.5, 0.9)) for side in whole.size)
    left = int(rng.integers(whole.width - width + 1))
    top = int(rng.integers(whole.height - height + 1))
    crop = io.BytesIO()
    whole.crop((left, top, left + width, top + height)).save(crop, "JPEG", quality=90)
    return crop.getvalue()
