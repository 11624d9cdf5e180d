"""The guarantee of the threshold if val negatives come from different sources."""

import numpy as np
import pytest

from train.metrics.calibration import umbrella_threshold

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
