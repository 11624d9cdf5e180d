"""What the ratings say about the head: precision, and false positives of 1,000 of the stream.

Only pictures count that were drawn at random in a round that is over, each with the inverse of the
probability of its draw; those that were picked because they are telling do not. Every candidate is
judged, by a head that has seen nothing of it, so that the number of those that are called the
target is known. The stream is the usable training candidates. Shapes: N drawn pictures.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.curate.label.candidates import Candidates
from pipeline.curate.label.choosing import Judged
from pipeline.curate.label.log import Standing
from pipeline.selection.intervals import Bools, Floats, weighted_interval


@dataclass(frozen=True)
class Rate:
    """A value and its two-sided 95 % interval; n drawn pictures."""

    value: float | None
    low: float
    high: float
    n: int

    def scaled(self, factor: float) -> "Rate":
        value = None if self.value is None else self.value * factor
        return Rate(value, self.low * factor, self.high * factor, self.n)

    def of_the_rest(self) -> "Rate":
        value = None if self.value is None else 1 - self.value
        return Rate(value, 1 - self.high, 1 - self.low, self.n)


@dataclass(frozen=True)
class Estimates:
    """Of one head; rates of the stream per 1,000 candidates."""

    model: str
    num_rated: int
    num_called: int
    precision: Rate
    false_positives: Rate  # per 1,000
    missed: Rate  # per 1,000: it shows the target and is not called


def estimate(found: Candidates, judged: Judged, standing: Standing) -> Estimates:
    share = float(judged.is_called_N.mean()) if len(found) else 0.0
    precision = _rate(found, judged, standing, is_called=True)
    missed = _rate(found, judged, standing, is_called=False)
    return Estimates(
        model=judged.model,
        num_rated=len(standing.verdicts),
        num_called=int(judged.is_called_N.sum()),
        precision=precision,
        false_positives=precision.of_the_rest().scaled(1000 * share),
        missed=missed.scaled(1000 * (1 - share)),
    )


def _rate(found: Candidates, judged: Judged, standing: Standing, *, is_called: bool) -> Rate:
    """The share of positives among those that are called, or among the others."""
    drawn = {
        each: probability
        for each, probability in standing.drawn_before.items()
        if each in found.position and judged.is_called_N[found.position[each]] == is_called
    }
    said = np.array([standing.verdicts.get(each, "skip") for each in drawn], str)
    return rate(
        said == "positive",
        ~np.isin(said, ("positive", "negative")),
        1 / np.array(list(drawn.values()), np.float64),
    )


def rate(is_event_N: Bools, is_doubtful_N: Bools, weight_N: Floats) -> Rate:
    """Doubtful ones are no events at the lower end, events at the upper, and left out between."""
    n = len(is_event_N)
    if n == 0:
        return Rate(None, 0.0, 1.0, 0)
    decided_N = ~is_doubtful_N
    value = None
    if decided_N.any():
        value = float(np.average(is_event_N[decided_N], weights=weight_N[decided_N]))
    low, _ = weighted_interval(is_event_N, weight_N)
    _, high = weighted_interval(is_event_N | is_doubtful_N, weight_N)
    return Rate(value, low, high, n)
