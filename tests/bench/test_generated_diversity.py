"""Generators make many kinds of pictures, measured by the encoder.

pytest -m slow tests/bench/test_generated_diversity.py -s
"""

import itertools
import os
import pkgutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.config.encoder import EncoderConfig
from pipeline.dataset.schema import RawSample
from pipeline.encoders.networks import Encoder, load_encoder
from pipeline.encoders.preprocessing import crop_any_image
from pipeline.encoders.runtimes import Runtime, prepare_encoder
from pipeline.encoders.torch_runtime import TorchRuntime
from pipeline.sources import generated, load_source_module, open_source
from support.pictures import first_pictures

Embeddings = NDArray[np.float32]

# Of the effective number of 48 pictures: 0.7 times what was measured.
FLOORS = {
    "collage": 8.5,
    "dead_leaves": 6.9,
    "fractal": 16.0,
    "gradients_and_blanks": 12.0,
    "noise": 13.0,
    "shapes": 12.0,
    "squares": 2.7,
    "text_and_ui": 9.0,
}
OF_KIND: dict[str, dict[str, Any]] = {
    "collage": {"sources": [{"kind": "squares"}]},
    "shapes": {"content": ["cat", "near", "far"]},
}


def mean_distance(embedding_BD: Embeddings) -> float:
    """1 - cosine, over all pairs."""
    gram_BB = embedding_BD @ embedding_BD.T
    number = len(gram_BB)
    return float(1 - (gram_BB.sum() - np.trace(gram_BB)) / (number * (number - 1)))


def effective_number(embedding_BD: Embeddings) -> float:
    """How many wholly different pictures would be as varied: 1 to B.

    exp of the entropy of the eigenvalues of the cosines' matrix over B: the Vendi score (Friedman
    and Dieng, TMLR 2023, https://arxiv.org/abs/2210.02410).
    """
    eigenvalues = np.linalg.eigvalsh(embedding_BD @ embedding_BD.T / len(embedding_BD))
    positive = eigenvalues[eigenvalues > 1e-9].astype(np.float64)
    return float(np.exp(-(positive * np.log(positive)).sum()))


def samples_of(kind: str, number: int, **params: object) -> list[RawSample]:
    return first_pictures(open_source(kind, {**OF_KIND.get(kind, {}), **params}), number)


def embed(samples: Sequence[RawSample], encoder: Encoder, runtime: Runtime) -> Embeddings:
    crops = (crop_any_image(s.image, encoder.preprocessing) for s in samples)
    batches = iter(lambda: list(itertools.islice(crops, 64)), [])
    return np.concatenate([runtime.embed(np.stack(batch)) for batch in batches])


@pytest.fixture(scope="module")
def small_encoder() -> Iterator[Encoder]:
    """The default encoder, looking at 96 pixels: a tenth of the work."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_encoder(EncoderConfig(image_size=96))
    torch.set_num_threads(num_threads)


def test_every_generator_is_measured() -> None:
    assert set(FLOORS) == {module.name for module in pkgutil.iter_modules(generated.__path__)}


def test_measures_know_their_ends() -> None:
    same, apart = np.tile(np.eye(8, dtype=np.float32)[:1], (8, 1)), np.eye(8, dtype=np.float32)
    assert (mean_distance(same), mean_distance(apart)) == (0, 1)
    assert effective_number(same) == pytest.approx(1)
    assert effective_number(apart) == pytest.approx(8)


@pytest.mark.parametrize("kind", FLOORS)
def test_pictures_are_varied(kind: str, small_encoder: Encoder) -> None:
    samples = samples_of(kind, 48, image_size=128)
    embedding_BD = embed(samples, small_encoder, TorchRuntime(small_encoder))
    assert effective_number(embedding_BD) > FLOORS[kind]
    names = np.array([s.class_name for s in samples])
    if len(set(names)) > 1:
        distance_BB = 1 - embedding_BD @ embedding_BD.T
        same_BB = names[:, None] == names[None]
        within = distance_BB[same_BB & ~np.eye(len(names), dtype=bool)].mean()
        assert distance_BB[~same_BB].mean() > within, "families differ more than pictures"


def test_a_generator_that_repeats_itself_would_be_found_out(small_encoder: Encoder) -> None:
    runtime = TorchRuntime(small_encoder)
    first = embed(samples_of("dead_leaves", 1, image_size=128), small_encoder, runtime)
    assert effective_number(np.repeat(first, 48, axis=0)) == pytest.approx(1, abs=1e-3)
    one_family = embed(
        samples_of("gradients_and_blanks", 48, image_size=128, families=["near_black"]),
        small_encoder,
        runtime,
    )
    assert effective_number(one_family) < FLOORS["gradients_and_blanks"] / 2


@pytest.mark.slow
def test_table_of_diversity(capsys: pytest.CaptureFixture[str]) -> None:
    """All families, and photographs where PHOTOS says where some lie (see configs/photos.yaml)."""
    prepared = prepare_encoder(EncoderConfig(), gpus_per_worker=0)
    encoder, runtime = load_encoder(EncoderConfig()), prepared.open()

    def row(name: str, samples: Sequence[RawSample]) -> str:
        embedding_BD = embed(samples, encoder, runtime)
        return (
            f"{name:32}{len(samples):5}{mean_distance(embedding_BD):8.3f}"
            f"{effective_number(embedding_BD):8.1f}"
        )

    rows = [f"{'':32}{'n':>5}{'1-cos':>8}{'eff. n':>8}"]
    for kind in FLOORS:
        rows.append(row(kind, samples_of(kind, 256)))
        params = load_source_module(kind).Params(**OF_KIND.get(kind, {}))
        for family in getattr(params, "families", ()):
            rows.append(row(f"  {family}", samples_of(kind, 256, families=[family])))
    rows.append(row("all of them", [s for kind in FLOORS for s in samples_of(kind, 32)]))
    for folder in ("random", "near", "imagenet_sample"):
        path = os.path.join(os.environ.get("PHOTOS", ""), folder)
        if os.path.isdir(path):
            samples = first_pictures(open_source("image_folder", {"path": path}), 256)
            rows.append(row(f"photographs: {folder}", samples))
    with capsys.disabled():
        print("", *rows, sep="\n")
