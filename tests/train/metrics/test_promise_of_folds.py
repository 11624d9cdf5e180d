"""The promise of the threshold where the model is the mean of cross-fitted heads, by simulation.

Two classes of D normal features of variance 1, whose means differ in five of them; heads are
linear, so that the false-positive rate of their mean is known exactly. Shapes: N rows, D features.
"""

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.linear_model import LogisticRegression

from train.metrics.calibration import umbrella_threshold

NUM_FOLDS = 5


def false_positive_rate(seed: int, dim: int, num: tuple[int, int], alpha: float) -> float:
    """Of the mean of the heads, at the threshold that their held-out logits give."""
    rng = np.random.default_rng(seed)
    is_positive_N = np.repeat([True, False], num)
    shift_D = 0.8 * (np.arange(dim) < 5)
    features_ND = rng.normal(size=(sum(num), dim)) + shift_D * is_positive_N[:, None]
    fold_N, logits_N = rng.integers(NUM_FOLDS, size=sum(num)), np.empty(sum(num))
    heads = []
    for fold in range(NUM_FOLDS):
        held_out_N = fold_N == fold
        head = LogisticRegression().fit(features_ND[~held_out_N], is_positive_N[~held_out_N])
        logits_N[held_out_N] = head.decision_function(features_ND[held_out_N])
        heads.append(np.append(head.coef_[0], head.intercept_))
    *weights, bias = np.mean(heads, axis=0)
    threshold, reached = umbrella_threshold(logits_N[~is_positive_N], alpha=alpha, delta=0.05)
    assert reached == alpha
    return float(norm.sf((threshold - bias) / np.linalg.norm(weights)))


@pytest.mark.parametrize(
    ("dim", "num", "alpha", "num_runs"),
    [
        (100, (50, 400), 0.05, 150),
        pytest.param(100, (50, 400), 0.05, 1000, marks=pytest.mark.slow),
        pytest.param(20, (200, 1000), 0.01, 1000, marks=pytest.mark.slow),
        pytest.param(300, (100, 600), 0.02, 1000, marks=pytest.mark.slow),
    ],
)
def test_the_mean_of_heads_keeps_the_promise(
    dim: int, num: tuple[int, int], alpha: float, num_runs: int
) -> None:
    rates = np.array([false_positive_rate(seed, dim, num, alpha) for seed in range(num_runs)])
    num_broken = int((rates > alpha).sum())
    # Kept at most as rarely as it says, and not by a threshold that nothing passes.
    assert binomtest(num_broken, num_runs, 0.05, alternative="greater").pvalue > 0.01
    assert rates.mean() > alpha / 5
    print(f"P(FPR > {alpha:g}) {num_broken / num_runs:.4f} of {num_runs}, mean {rates.mean():.4g}")
