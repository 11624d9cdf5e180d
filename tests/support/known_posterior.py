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
from numpy.typing import NDArray
from scipy.special import expit

from pipeline.dataset.metadata import Generation, ShardRecord
from pipeline.encoders.networks import encoder_identity, load_encoder
from support.tables import selected_rows
from support.train_runs import ENCODER, commit_dataset, write_shards

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


def write_biased_dataset(root: Path, rng: np.random.Generator, *, num_pictures: int) -> Generation:
    """The train split of a data set: what the sampling keeps of `num_pictures`."""
    drawn = draw_pictures(rng, num_pictures)
    kept = drawn.subset(rng.random(num_pictures) < drawn.inclusion_probability_N)
    is_often_N = kept.is_often_kept_N
    shards: list[ShardRecord] = []
    for source, label, chosen_N in (
        ("my_cat", "cat", kept.is_cat_N),
        ("often", "", ~kept.is_cat_N & is_often_N),
        ("seldom", "", ~kept.is_cat_N & ~is_often_N),
    ):
        pictures = kept.subset(chosen_N)
        images = [b"no trainer of a head looks here"] * len(pictures.is_cat_N)
        rows = selected_rows(
            source, label, pictures.embedding_ND, images, similarity=pictures.similarity_N,
            inclusion_probability=pictures.inclusion_probability_N,
        )  # fmt: skip
        shards += write_shards(root, rows, samples_per_shard=num_pictures)
    return commit_dataset(root, f"{encoder_identity(load_encoder(ENCODER), ENCODER)}:toy", shards)
