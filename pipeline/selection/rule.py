"""The rule that decides about each candidate: its inclusion probability and its draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config.selection import SelectionConfig
from pipeline.dataset import Dataset
from pipeline.dataset.keys import unit_hash
from pipeline.dataset.metadata import SourcePlan


@dataclass(frozen=True)
class SelectionRule:
    """How candidates of one source are chosen.

    Training negatives have their `inclusion_probability`. Negatives of val and test all have
    `eval_probability`, so that plain binomial intervals hold. Positives have 1.
    """

    scale: float
    beta: float
    offset: float
    min_probability: float
    eval_probability: float
    seed: int
    near: float  # similarity below which the perceptual hash of a positive is a coincidence
    ceiling: float | None  # similarity above which an unlabelled candidate is suspected

    def train_probability(self, similarity_B: NDArray[np.floating]) -> NDArray[np.float32]:
        """inclusion_probability_B of training negatives, in the precision of the column."""
        return inclusion_probability(
            similarity_B,
            scale=self.scale,
            beta=self.beta,
            offset=self.offset,
            min_probability=self.min_probability,
        ).astype(np.float32)


def load_rule(dataset: Dataset, source: str, selection: SelectionConfig) -> SelectionRule:
    """The rule of a source whose plan is committed."""
    plan = dataset.read_plan(source)
    assert plan is not None, f"no plan is committed for {source}"
    reference = dataset.read_reference()
    assert reference is not None
    return SelectionRule(
        scale=plan.scale,
        beta=selection.effective_beta,
        offset=reference.median,
        min_probability=floor_of(plan, selection),
        eval_probability=plan.eval_probability,
        seed=selection.seed,
        near=reference.near,
        ceiling=reference.ceiling if selection.quarantine == "auto" else None,
    )


def floor_of(plan: SourcePlan, selection: SelectionConfig) -> float:
    """The least inclusion probability of training negatives."""
    floor = plan.min_probability
    return selection.min_probability if floor is None else floor


def inclusion_probability(
    similarity_B: NDArray[np.floating],
    *,
    scale: float,
    beta: float,
    offset: float,
    min_probability: float,
) -> NDArray[np.float64]:
    """clip(scale * exp(beta * (s - offset)), min_probability, 1), in double precision."""
    weight_B = np.exp(beta * (similarity_B.astype(np.float64) - offset))
    return np.clip(scale * weight_B, min_probability, 1.0)


def poisson_sample(
    rule: SelectionRule,
    *,
    similarity_B: NDArray[np.floating],
    content_hashes: Sequence[str],
    is_positive_B: NDArray[np.bool_],
    is_train_B: NDArray[np.bool_],
    at_least_B: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """inclusion_probability_B, and is_drawn_B: the permanent random number of a row is below it.

    at_least_B: probabilities of another draw. The union of two draws by the same random numbers is
    a draw by the larger probability.
    """
    probability_B = np.where(
        is_train_B, rule.train_probability(similarity_B), np.float32(rule.eval_probability)
    )
    if at_least_B is not None:
        probability_B = np.maximum(probability_B, at_least_B)
    probability_B[is_positive_B] = 1.0
    chance_B = np.array([unit_hash(rule.seed, content_hash) for content_hash in content_hashes])
    return probability_B, chance_B < probability_B
