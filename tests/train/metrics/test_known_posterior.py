"""What a training recovers of a world whose posterior is known, from a heavily biased sample.

A picture is a point of R^4, P(cat | point) is logistic in it, and `similarity` grows with its
first coordinate. All cats are kept, others with a probability of 0.01 to 1 that grows with the
similarity; those with a positive second coordinate come from a source that is kept five times as
often at the same similarity, so that the source can be told from the picture.

Shapes: N pictures, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit
from scipy.special import logit as log_odds

from pipeline.dataset.metadata import ShardRecord
from pipeline.encoders.networks import encoder_identity, load_encoder
from support.tables import selected_rows
from support.train_runs import ENCODER, commit_dataset, run_training, write_shards
from train.metrics.calibration import calibrate_target
from train.metrics.probability import calibrated_logits
from train.metrics.ranking import reliability
from train.model.detector import load_model

EMBEDDING_DIM = 256
_DIRECTION = np.array([1.6, 1.0, -0.8, 0.5])
_BIAS = -2.5
SETTINGS = {"steps": 600, "learning_rate": 0.003, "hidden_dim": 32, "dropout": 0.0}


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
        """The point twice, once negated, among the values of a coin: LayerNorm leaves it alone."""
        coin_N1 = np.sign(np.sin(1e4 * self.point_N4[:, :1]))
        coins_ND = coin_N1 * np.tile([1.0, -1.0], (EMBEDDING_DIM - 8) // 2)
        rows_ND = np.concatenate([self.point_N4, -self.point_N4, coins_ND], axis=1)
        return (rows_ND / EMBEDDING_DIM**0.5).astype(np.float16)

    def subset(self, chosen_N: NDArray[np.bool_]) -> "Pictures":
        return Pictures(self.point_N4[chosen_N], self.is_cat_N[chosen_N])


def draw_pictures(rng: np.random.Generator, number: int) -> Pictures:
    point_N4 = rng.normal(size=(number, 4))
    posterior_N = Pictures(point_N4, np.zeros(number, bool)).posterior_N
    return Pictures(point_N4, rng.random(number) < posterior_N)


@dataclass(frozen=True)
class Gap:
    """Errors of predicted against true probabilities of images drawn from the world.

    `ece` averages over images with equal predictions, `mean` is over single images. Before
    calibration the logits are only moved from the prior trained on to the true one.
    """

    ece: float
    mean: float
    ece_before: float
    mean_before: float


def gap_of(said_N: NDArray[np.float64], true_N: NDArray[np.float64]) -> tuple[float, float]:
    """Against the true posterior instead of labels, so that the estimate has no label noise."""
    ece = reliability(true_N, said_N, np.ones(len(true_N))).ece
    return ece, float(np.abs(said_N - true_N).mean())


def measure_gaps(
    dataset: Path, run: Path, calibrations: Sequence[str], **section: Any
) -> list[Gap]:
    """Trains, calibrates on fresh pictures, every second negative of them."""
    detector, info = load_model(run_training(dataset, run, **SETTINGS, **section))
    val, fresh = (draw_pictures(np.random.default_rng(n), n) for n in (20_000, 50_000))
    true_N = fresh.posterior_N
    val = val.subset(val.is_cat_N | (np.arange(len(val.is_cat_N)) % 2 == 0))

    def logits_of(pictures: Pictures) -> NDArray[np.float32]:
        with torch.inference_mode():
            embedding_ND = torch.from_numpy(pictures.embedding_ND).float()
            logits_N: NDArray[np.float32] = detector.head_logits(embedding_ND)[:, 0].numpy()
        return logits_N

    logits_N = logits_of(fresh)
    prior_shift = log_odds(true_N.mean()) - log_odds(info.positive_share)
    before = gap_of(expit(logits_N.astype(np.float64) + prior_shift), true_N)
    gaps = []
    for calibration in calibrations:
        fitted = calibrate_target(
            logits_of(val),
            val.is_cat_N,
            np.where(val.is_cat_N, 1.0, 2.0),
            target="cat",
            alpha=0.05,
            delta=0.05,
            deploy_prior=0.5,
            method=calibration,
            trained_prior=(info.trained_priors or {}).get("cat"),
        )
        said_N = expit(calibrated_logits(fitted, logits_N, deployed=False))
        gaps.append(Gap(*gap_of(said_N, true_N), *before))
    return gaps


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The train split of a data set: what the sampling keeps of 30,000 pictures."""
    root, rng = tmp_path_factory.mktemp("biased"), np.random.default_rng(0)
    drawn = draw_pictures(rng, 30_000)
    kept = drawn.subset(rng.random(30_000) < drawn.inclusion_probability_N)
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
        shards += write_shards(root, rows, samples_per_shard=30_000)
    commit_dataset(root, f"{encoder_identity(load_encoder(ENCODER), ENCODER)}:toy", shards)
    return root


@pytest.mark.parametrize("correction", ["weight", "offset"])
def test_corrected_training_recovers_the_posterior_of_the_stream(
    biased: Path, tmp_path: Path, correction: str
) -> None:
    methods = ("platt", "temperature")
    for gap in measure_gaps(biased, tmp_path / "run", methods, correction=correction):
        assert gap.ece < 0.01
        assert gap.mean < 0.015
        assert gap.ece_before < 0.01, "the correction does it, and not the calibration"


def test_uncorrected_training_does_not(biased: Path, tmp_path: Path) -> None:
    """Calibration corrects predictions on average, not for single images."""
    (gap,) = measure_gaps(biased, tmp_path / "run", ["platt"], correction="none")
    assert gap.mean_before > 0.08
    assert gap.mean > 0.08
