"""The guarantee of the threshold for a mix of negatives, and for the parts of it."""

from typing import Literal

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from train.metrics.calibration import calibrate_target, promised_rate, umbrella_threshold
from train.model.info import TargetCalibration

NUM_DRAWS = 1000
# Logits of source h are uniform over [0, tops[h]]: its true rate above t is 1 - t / tops[h].
TOPS = np.array([1.0, 1.3, 2.0])


def _violations(counts: list[int], mix: list[float], *, alpha: float, delta: float) -> float:
    """How often the true rate of the mix exceeds alpha, over draws of `counts` per source."""
    rng = np.random.default_rng(0)
    tops = np.repeat(TOPS, counts)
    exceeded = 0
    for _ in range(NUM_DRAWS):
        threshold, _ = umbrella_threshold(rng.random(len(tops)) * tops, alpha=alpha, delta=delta)
        rate_H = np.clip(1 - threshold / TOPS, 0, None)
        exceeded += np.average(rate_H, weights=mix) > alpha
    return exceeded / NUM_DRAWS


@pytest.mark.parametrize("counts", [[280, 10, 10], [100, 100, 100], [200, 90, 10]])
def test_guarantee_holds_for_the_mix_of_sources_as_drawn(counts: list[int]) -> None:
    share = _violations(counts, list(map(float, counts)), alpha=0.05, delta=0.1)
    assert share <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / NUM_DRAWS)


def test_guarantee_does_not_hold_for_another_mix() -> None:
    """A source of which 1 in 10 was drawn holds most of the stream: the report says so."""
    counts = [280, 10, 10]
    assert _violations(counts, [280, 100, 100], alpha=0.05, delta=0.1) > 0.5


# Negatives of each stratum: their number, and the mean of their normal logits.
STRATA = {"near": (60, 1.5), "far": (340, 0.0), "generated": (600, -2.0)}
PARTS = {
    "look_alikes": ("near",),
    "photographs": ("near", "far"),
    "generated": ("generated",),
}


def calibrate_world(seed: int, promise: Literal["mix", "worst"]) -> TargetCalibration:
    rng = np.random.default_rng(seed)
    logits = [rng.normal(mean, 1, num) for num, mean in STRATA.values()] + [rng.normal(4, 1, 40)]
    stratum_N = np.repeat([*STRATA, ""], [*(num for num, _ in STRATA.values()), 40])
    return calibrate_target(
        np.concatenate(logits).astype(np.float32), stratum_N == "", np.ones(len(stratum_N)),
        target="cat", stratum_N=stratum_N, promise=promise, alpha=0.05, delta=0.05,
        deploy_prior=0.5,
    )  # fmt: skip


def true_rates(threshold: float) -> dict[str, float]:
    rates = {name: norm.sf(threshold - mean) for name, (_, mean) in STRATA.items()}
    parts = PARTS | {"mix": tuple(STRATA)}
    return {
        name: float(
            np.average([rates[s] for s in strata], weights=[STRATA[s][0] for s in strata])
        )
        for name, strata in parts.items()
    }  # fmt: skip


def test_each_part_of_the_mix_has_the_rate_that_it_is_promised() -> None:
    """Generated pictures dilute the mix: the rate of look-alikes is several times alpha."""
    broken, promised = dict.fromkeys(PARTS, 0), []
    for seed in range(300):
        calibration = calibrate_world(seed, "mix")
        rates = true_rates(calibration.threshold)
        for name, promise in calibration.promises.items():
            broken[name] += rates[name] > promise.alpha
        promised.append(calibration.promises["look_alikes"].alpha)
    assert {n: p.num_negatives for n, p in calibration.promises.items()} == {
        "look_alikes": 60, "photographs": 400, "generated": 600,
    }  # fmt: skip
    for number in broken.values():
        assert binomtest(number, 300, 0.05, alternative="greater").pvalue > 0.01
    assert np.mean(promised) > 0.2, "alpha is 0.05"


def test_worst_promises_alpha_for_each_part() -> None:
    broken = dict.fromkeys([*PARTS, "mix"], 0)
    for seed in range(300):
        calibration = calibrate_world(seed, "worst")
        assert calibration.alpha == 0.05
        for name, rate in true_rates(calibration.threshold).items():
            broken[name] += rate > 0.05
    for number in broken.values():
        assert binomtest(number, 300, 0.05, alternative="greater").pvalue > 0.01
    assert broken["look_alikes"] > 0, "no more than is promised"


def test_the_promise_of_all_is_alpha_itself() -> None:
    logits_N = np.random.default_rng(0).normal(size=500)
    for alpha in (0.01, 0.05, 0.001):
        threshold, reached = umbrella_threshold(logits_N, alpha=alpha, delta=0.05)
        promised = promised_rate(logits_N, threshold, delta=0.05)
        assert promised <= reached or promised == pytest.approx(reached)
        assert promised > 0.7 * reached
    assert promised_rate(logits_N, -10.0, delta=0.05) == 1.0
