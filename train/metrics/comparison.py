"""How two runs differ on the same pictures.

A difference of two rates is P(only the second) - P(only the first): pictures on which both agree
say nothing about it. Shapes: N pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.selection.intervals import weighted_interval
from train.metrics.predictions import TargetPredictions
from train.metrics.ranking import Bools, Floats, threshold_at_tpr
from train.metrics.rates import members_by_stratum

_TPR = 0.95
_SHOWN = ("key", "source", "stratum", "label", "shard", "tar_offset", "tar_size", "uri")


@dataclass(frozen=True)
class Difference:
    """Of a rate of two runs on the same n pictures, second - first, with its 95 % interval."""

    first: float
    second: float
    value: float
    low: float
    high: float
    n: int
    num_only_first: int
    num_only_second: int


@dataclass(frozen=True)
class Comparison:
    """Of the run `name` with the first one, for a target. Rates by name, then by stratum.

    changed: rows of the pictures that get another answer, those that moved most first, with the
    distances `first` and `second` of their logits to the thresholds.
    """

    target: str
    name: str
    rates: Mapping[str, Mapping[str, Difference]]
    changed: list[dict[str, Any]]


def compare_predictions(
    first: TargetPredictions,
    second: TargetPredictions,
    *,
    thresholds: tuple[float, float],
    name: str,
) -> Comparison:
    """Both of the same pictures in the same order; strata and weights are those of the first."""
    pair = (first.logits_N, second.logits_N)
    margins = [logits_N - at for logits_N, at in zip(pair, thresholds, strict=True)]
    is_positive_N = first.is_positive_N
    rates = {
        "TPR at the threshold": _differences(first, {"": is_positive_N}, margins),
        "FPR at the threshold": _differences(first, members_by_stratum(first), margins),
    }
    if is_positive_N.any():
        at_tpr = [threshold_at_tpr(logits_N[is_positive_N], tpr=_TPR) for logits_N in pair]
        above = [logits_N - at for logits_N, at in zip(pair, at_tpr, strict=True)]
        rates["FPR at TPR 95 %"] = _differences(first, members_by_stratum(first), above)
    return Comparison(first.target, name, rates, _changed(first, margins))


def _differences(
    test: TargetPredictions, members: Mapping[str, Bools], margins: Sequence[Floats]
) -> dict[str, Difference]:
    """Of detections among the members, weighted to the stream; none where there are no members."""
    first_N, second_N = (margin_N >= 0 for margin_N in margins)
    return {
        name: difference(first_N[chosen], second_N[chosen], test.weights_N[chosen])
        for name, chosen in members.items()
        if chosen.any()
    }


def difference(first_N: Bools, second_N: Bools, weights_N: Floats) -> Difference:
    """Of the rates of two events.

    Each end combines the ends of two intervals of 97.5 %, so that both hold in 95 % (Bonferroni).
    """
    only_first_N, only_second_N = first_N & ~second_N, second_N & ~first_N
    lost, gained = (
        weighted_interval(only_N, weights_N, confidence=0.975)
        for only_N in (only_first_N, only_second_N)
    )
    first, second = (float(np.average(each, weights=weights_N)) for each in (first_N, second_N))
    return Difference(
        first=first,
        second=second,
        value=second - first,
        low=gained[0] - lost[1],
        high=gained[1] - lost[0],
        n=len(first_N),
        num_only_first=int(only_first_N.sum()),
        num_only_second=int(only_second_N.sum()),
    )


def _changed(test: TargetPredictions, margins: Sequence[Floats]) -> list[dict[str, Any]]:
    first_N, second_N = margins
    rows = np.flatnonzero((first_N >= 0) != (second_N >= 0))
    rows = rows[np.argsort(-np.abs(first_N[rows] - second_N[rows]), kind="stable")]
    about = test.rows.select(list(_SHOWN)).take(pa.array(rows, pa.int64())).to_pylist()
    return [
        {**row, "first": float(first_N[at]), "second": float(second_N[at])}
        for row, at in zip(about, rows.tolist(), strict=True)
    ]
