"""Training on a heavily biased sample of a world with a known posterior."""

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

from support.known_posterior import Pictures, draw_pictures, write_biased_dataset
from support.train_runs import run_training
from train.metrics.calibration import calibrate_target, calibrated_logits
from train.metrics.ranking import reliability
from train.model.detector import load_model

SETTINGS = {"steps": 600, "learning_rate": 0.003, "hidden_dim": 32, "dropout": 0.0}


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
    root = tmp_path_factory.mktemp("biased")
    write_biased_dataset(root, np.random.default_rng(0), num_pictures=30_000)
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
    assert gap.ece_before > 0.02
    assert gap.mean_before > 0.08
    assert gap.mean > 0.08
