"""Several runs of one arm as one number with an interval, and two arms as a ratio.

Shapes: R runs, B resamples, P pictures.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from train.metrics.ranking import Floats

_NUM_RESAMPLES = 2000
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Pooled:
    """A rate over runs, or a ratio of two, with its two-sided 95 % interval."""

    value: float
    low: float
    high: float
    num_alarms: int
    n: int  # images tested, over all runs
    num_images: int  # different ones


def pool_rate(results: Sequence[Result], *strata: str) -> Pooled | None:
    """The false-positive rate at TPR 95 % in some strata: alarms over images tested, of all seeds.

    The same picture is tested by several seeds, and seeds differ in split, draw and weights: both
    are resampled, independently (the pigeonhole bootstrap, Owen, Annals of Applied Statistics
    2007), which is conservative. Without any alarm it has no width; the interval is
    then Clopper-Pearson's for 0 of the number of different pictures.
    """
    counts = _Counts.of(results, strata)
    if counts is None:
        return None
    num_alarms, n = int(counts.alarms_RP.sum()), int(counts.tested_RP.sum())
    num_images = counts.tested_RP.shape[1]
    if num_alarms == 0:
        low, high = binomtest(0, num_images).proportion_ci(method="exact")
    else:
        alarms_B, tested_B = counts.resampled(*_weights(counts.tested_RP.shape))
        low, high = _interval(alarms_B / tested_B)
    return Pooled(num_alarms / n, low, high, num_alarms, n, num_images)


def pool_ratio(
    results: Sequence[Result], baseline: Sequence[Result], stratum: str
) -> Pooled | None:
    """The rate of one arm over that of another, resampled together: same seeds, same pictures.

    None if the other arm raised no alarm. Adds one half to both numbers of alarms.
    """
    counts = _Counts.of([*results, *baseline], (stratum,))
    if counts is None or len(results) != len(baseline):
        return None
    if [r["seed"] for r in results] != [r["seed"] for r in baseline]:
        return None
    half = len(results)
    ours = _Counts(counts.alarms_RP[:half], counts.tested_RP[:half])
    theirs = _Counts(counts.alarms_RP[half:], counts.tested_RP[half:])
    if not theirs.alarms_RP.any():
        return None
    weights = _weights(ours.tested_RP.shape)
    rates = [
        (alarms_B + 0.5) / tested_B
        for alarms_B, tested_B in (each.resampled(*weights) for each in (ours, theirs))
    ]
    low, high = _interval(rates[0] / rates[1])
    value = float((ours.alarms_RP.sum() + 0.5) / (theirs.alarms_RP.sum() + 0.5))
    value *= float(theirs.tested_RP.sum() / ours.tested_RP.sum())
    n = int(ours.tested_RP.sum())
    return Pooled(value, low, high, int(ours.alarms_RP.sum()), n, ours.tested_RP.shape[1])


@dataclass(frozen=True)
class _Counts:
    """1 where a run tested a picture, and where it raised an alarm."""

    alarms_RP: NDArray[np.float64]
    tested_RP: NDArray[np.float64]

    @classmethod
    def of(cls, results: Sequence[Result], strata: Sequence[str]) -> "_Counts | None":
        """None if a run lacks one of the strata."""
        if not results or any(each not in r["tested"] for r in results for each in strata):
            return None
        tested = [_images_of(result, "tested", strata) for result in results]
        names = sorted({name for of_run in tested for name in of_run})
        column = {name: number for number, name in enumerate(names)}
        alarms_RP, tested_RP = np.zeros((2, len(results), len(names)))
        for row, result in enumerate(results):
            tested_RP[row, [column[name] for name in tested[row]]] = 1
            alarms = _images_of(result, "alarms", strata)
            alarms_RP[row, [column[name] for name in alarms]] = 1
        return cls(alarms_RP, tested_RP)

    def resampled(self, runs_BR: Floats, images_BP: Floats) -> tuple[Floats, Floats]:
        """Alarms and tests of runs and pictures that are drawn so often."""
        alarms_B, tested_B = (
            ((runs_BR @ each_RP) * images_BP).sum(1) for each_RP in (self.alarms_RP, self.tested_RP)
        )
        return alarms_B, np.maximum(tested_B, 1)


def _images_of(result: Result, what: str, strata: Sequence[str]) -> list[str]:
    return [name for stratum in strata for name in result[what][stratum]]


def _weights(shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """runs_BR and images_BP: how often each is drawn."""
    rng = np.random.default_rng(0)
    runs_BR, images_BP = (
        rng.multinomial(number, np.full(number, 1 / number), _NUM_RESAMPLES).astype(float)
        for number in shape
    )
    return runs_BR, images_BP


def _interval(values_B: Floats) -> tuple[float, float]:
    low, high = np.quantile(values_B, (0.025, 0.975))
    return float(low), float(high)


def mean_of(results: Sequence[Result], *path: str) -> float | None:
    """The mean over runs of the number at `path`; None if a run lacks it."""
    values = []
    for result in results:
        value: Any = result
        for name in path:
            value = value.get(name) if value is not None else None
        if value is None:
            return None
        values.append(float(value))
    return float(np.mean(values))


class Case(NamedTuple):
    """What runs that only differ in their seed have in common."""

    arm: str
    near_share: float | None
    num_positives: int
    budget: int


Groups = Mapping[Case, Sequence[Result]]


def group_runs(results: Sequence[Result]) -> Groups:
    """The runs of each case, by seed."""
    groups: dict[Case, list[Result]] = defaultdict(list)
    for result in results:
        case = Case(*(result[field] for field in Case._fields))
        groups[case].append(result)
    return {case: sorted(runs, key=lambda run: run["seed"]) for case, runs in groups.items()}
