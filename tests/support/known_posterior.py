"""A world whose posterior is known, sampled with heavy bias: to see what a training recovers.

A picture is a point of R^4, P(cat | point) is logistic in it, and `similarity` grows with its
first coordinate. All cats are kept, others with a probability of 0.01 to 1 that grows with the
similarity; those with a positive second coordinate come from a source that is kept five times as
often at the same similarity, so that the source can be told from the picture.

Shapes: N pictures, D embedding.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit

from pipeline.dataset import Dataset
from pipeline.dataset.keys import make_key, sha256_hex
from pipeline.dataset.metadata import Generation, ShardRecord
from pipeline.dataset.schema import LabelState, row_schema
from pipeline.dataset.shards import output_group, write_shard
from pipeline.encoders.networks import encoder_identity, load_encoder
from support.train_runs import ENCODER, commit_dataset

EMBEDDING_DIM = 256
_DIRECTION = np.array([1.6, 1.0, -0.8, 0.5])
_BIAS = -2.5


@dataclass(frozen=True)
class Pictures:
    """Drawn from the world as it is."""

    point_N4: NDArray[np.float64]
    is_cat_N: NDArray[np.bool_]

    @property
    def posterior_N(self) -> NDArray[np.float64]:
        return expit(self.point_N4 @ _DIRECTION + _BIAS)

    @property
    def similarity_N(self) -> NDArray[np.float32]:
        return np.tanh(self.point_N4[:, 0] / 2).astype(np.float32)

    @property
    def is_often_kept_N(self) -> NDArray[np.bool_]:
        return self.point_N4[:, 1] > 0

    @property
    def inclusion_probability_N(self) -> NDArray[np.float64]:
        scale_N = np.where(self.is_often_kept_N, 0.5, 0.1)
        probability_N = np.clip(scale_N * np.exp(5 * (self.similarity_N - 0.3)), 0.01, 1)
        return np.where(self.is_cat_N, 1.0, probability_N)

    @property
    def embedding_ND(self) -> NDArray[np.float16]:
        """The point twice, once negated, among constants: the head's LayerNorm leaves it alone."""
        constant_ND = np.tile([1.0, -1.0], (len(self.point_N4), (EMBEDDING_DIM - 8) // 2))
        rows_ND = np.concatenate([self.point_N4, -self.point_N4, constant_ND], axis=1)
        return (rows_ND / EMBEDDING_DIM**0.5).astype(np.float16)

    def subset(self, chosen_N: NDArray[np.bool_]) -> "Pictures":
        return Pictures(self.point_N4[chosen_N], self.is_cat_N[chosen_N])


def draw_pictures(rng: np.random.Generator, number: int) -> Pictures:
    point_N4 = rng.normal(size=(number, 4))
    posterior_N = Pictures(point_N4, np.zeros(number, bool)).posterior_N
    return Pictures(point_N4, rng.random(number) < posterior_N)


def keep_some(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    return pictures.subset(rng.random(len(pictures.is_cat_N)) < pictures.inclusion_probability_N)


def write_biased_dataset(root: Path, rng: np.random.Generator, *, num_pictures: int) -> Generation:
    """The train split of a data set: what the sampling keeps of `num_pictures`."""
    kept = keep_some(draw_pictures(rng, num_pictures), rng)
    is_often_N = kept.is_often_kept_N
    groups: dict[tuple[str, LabelState], Pictures] = {
        ("my_cat", "verified_present"): kept.subset(kept.is_cat_N),
        ("often", "verified_absent"): kept.subset(~kept.is_cat_N & is_often_N),
        ("seldom", "verified_absent"): kept.subset(~kept.is_cat_N & ~is_often_N),
    }
    shards = [_write_group(root, *names, pictures) for names, pictures in groups.items()]
    counts = {source: len(pictures.is_cat_N) for (source, _), pictures in groups.items()}
    fingerprint = f"{encoder_identity(load_encoder(ENCODER), ENCODER)}:toy"
    return commit_dataset(root, ("cat",), fingerprint, EMBEDDING_DIM, shards, counts)


def _write_group(
    root: Path, source: str, label_state: LabelState, pictures: Pictures
) -> ShardRecord:
    label = "cat" if label_state == "verified_present" else ""
    number = len(pictures.is_cat_N)
    embedding_ND = pictures.embedding_ND
    columns = {
        "key": [make_key(source, "p", i) for i in range(number)],
        "source": [source] * number,
        "uri": [f"toy://{source}/{i}" for i in range(number)],
        "label": [label] * number,
        "label_state": [label_state] * number,
        "split": ["train"] * number,
        "content_hash": [sha256_hex(f"{source}/{i}".encode()) for i in range(number)],
        "image": [b"no trainer of a head looks here"] * number,
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(embedding_ND.ravel()), EMBEDDING_DIM
        ),
        "similarity": pictures.similarity_N,
        "inclusion_probability": pictures.inclusion_probability_N,
        "selected": [True] * number,
    }
    schema = row_schema(EMBEDDING_DIM)
    arrays = [
        pa.array(columns[field.name], field.type)
        if isinstance(columns.get(field.name), list)
        else pa.array(columns[field.name]).cast(field.type)
        if field.name in columns
        else pa.nulls(number, field.type)
        for field in schema
    ]
    stem = output_group(source=source, split="train", label=label, selected=True, reason=None)
    shard = write_shard(
        Dataset(str(root)), pa.table(arrays, schema=schema), stem=f"{stem}-000000",
        targets=("cat",), encoder="toy", round_number=1,
    )  # fmt: skip
    return ShardRecord(**shard.model_dump(), split="train", label=label)
