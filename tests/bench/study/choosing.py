"""Rules that choose negatives out of a stream of embeddings, each with exact probabilities.

A *first head* is a logistic regression on the positives and on the negatives that similarity
chose. Each fold of the stream is judged by a head that saw no negative of it, so that whether a
candidate of the fold was drawn has no part in its score: given the other folds, its inclusion
probability is 1 among the hardest of its fold, and that of the draw by similarity elsewhere.

Shapes: P positives, N candidates of the stream, M rows to judge, D embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from pipeline.dataset.keys import sha256_hex
from pipeline.selection import first_head as first_heads
from pipeline.selection.hardest import Candidates, Positives, choose_hardest

Floats = NDArray[np.floating]
_NEIGHBOURS = 5
_MIN_PROBABILITY = 0.01


@dataclass(frozen=True)
class Stream:
    """Positives and candidates. chance_N: permanent random numbers; fold_N: independent of them.

    is_near_N: look-alikes, which no rule but "known" may look at.
    """

    positive_PD: Floats
    candidate_ND: Floats
    chance_N: Floats
    fold_N: NDArray[np.int64]
    is_near_N: NDArray[np.bool_]
    seed: int

    @property
    def similarity_N(self) -> Floats:
        cosine_NP = self.candidate_ND @ self.positive_PD.T
        return np.asarray(np.sort(cosine_NP, axis=1)[:, -_NEIGHBOURS:].mean(axis=1))


class Chosen(NamedTuple):
    """Which candidates, and the probability with which each of the stream was to be chosen."""

    is_chosen_N: NDArray[np.bool_]
    probability_N: Floats


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How `budget` negatives are chosen.

    share: of the budget, for the first head; 0: none. pick: among the hardest, `top` takes them
    in order, `spread` by k-means++ out of `depth` times as many, `draw` by probability, as mining
    does, `build` is the code of a build, which spreads over twice as many; `known` draws
    look-alikes, a limit of what can be gained. is_exact: cross-fitted. power: the head that is
    measured weighs a negative by its probability to the power of -power.
    """

    beta: float = 8.0
    share: float = 0.0
    pick: Literal["top", "spread", "draw", "build", "known"] = "top"
    depth: float = 1.0
    is_exact: bool = True
    power: float = 1.0


def choose(stream: Stream, rule: Rule, budget: int) -> Chosen:
    if rule.pick == "known":
        return _choose_known(stream, rule, budget)
    similarity_N = stream.similarity_N
    wanted = budget * (1 - rule.share)
    probability_N = _fit(np.exp(rule.beta * (similarity_N - similarity_N.max())), wanted)
    first = Chosen(stream.chance_N < probability_N, probability_N)
    if not rule.share:
        return first
    if rule.pick == "build":
        return _choose_as_build(stream, first)
    hard_N = np.zeros(len(similarity_N))
    fold_N = stream.fold_N if rule.is_exact else np.zeros(len(similarity_N), int)
    for fold in range(int(fold_N.max()) + 1):
        inside_N = fold_N == fold
        seen_N = first.is_chosen_N & ~inside_N if rule.is_exact else first.is_chosen_N
        logit_M = first_head(stream, seen_N, probability_N)(stream.candidate_ND[inside_N])
        before_M = probability_N[inside_N].copy()
        if not rule.is_exact:
            before_M = first.is_chosen_N[inside_N].astype(float)
        wanted_here = budget * rule.share * inside_N.mean()
        hard_N[inside_N] = _hardest(stream, rule, inside_N, logit_M, before_M, wanted_here)
    probability_N = np.maximum(probability_N, hard_N)
    is_hard_N = stream.chance_N < hard_N
    return Chosen(first.is_chosen_N | is_hard_N, probability_N)


def _choose_as_build(stream: Stream, first: Chosen) -> Chosen:
    """Adds as many as similarity draws in expectation."""
    names = [sha256_hex(f"candidate {n}".encode()) for n in range(len(stream.fold_N))]
    found = Candidates(
        file_N=np.zeros(len(names), np.int64),
        row_N=np.arange(len(names)),
        hash_N=np.array(names, "S64"),
        fold_N=stream.fold_N,
        similarity_N=stream.similarity_N.astype(np.float32),
        probability_N=first.probability_N,
        is_drawn_N=first.is_chosen_N,
        is_unknown_N=np.zeros(len(names), bool),
    )
    hashes = [sha256_hex(f"positive {n}".encode()) for n in range(len(stream.positive_PD))]
    taken = choose_hardest(
        found,
        lambda chosen: np.asarray(stream.candidate_ND[chosen], np.float32),
        Positives(stream.positive_PD, hashes),
        kept=np.array([], "S64"),
        is_guarded=False,
    )
    is_hard_N = np.array([name in taken for name in names])
    return Chosen(first.is_chosen_N | is_hard_N, np.where(is_hard_N, 1.0, first.probability_N))


def _choose_known(stream: Stream, rule: Rule, budget: int) -> Chosen:
    is_near_N = stream.is_near_N
    near = min(budget * rule.share / is_near_N.sum(), 1.0)
    probability_N = np.where(is_near_N, near, budget * (1 - rule.share) / (~is_near_N).sum())
    return Chosen(stream.chance_N < probability_N, probability_N)


def first_head(
    stream: Stream, seen_N: NDArray[np.bool_], probability_N: Floats
) -> Callable[[Floats], Floats]:
    negative_MD = stream.candidate_ND[seen_N]
    return fit_logistic(stream.positive_PD, negative_MD, 1 / probability_N[seen_N])


def fit_logistic(
    positive_PD: Floats, negative_MD: Floats, weight_M: Floats
) -> Callable[[Floats], Floats]:
    """Logits of the build's own logistic regression."""
    weight_D, bias = first_heads.fit_logistic(positive_PD, negative_MD, weight_M)
    return lambda rows_MD: np.asarray(rows_MD @ weight_D + bias)


def _hardest(
    stream: Stream,
    rule: Rule,
    inside_N: NDArray[np.bool_],
    logit_M: Floats,
    before_M: Floats,
    wanted: float,
) -> Floats:
    """hard_M: probabilities that add `wanted` to those before, in expectation."""
    if rule.pick == "draw":
        log_p_M = -np.logaddexp(0, -logit_M)

        def excess(log_scale: float) -> float:
            mined_M = np.exp(np.minimum(log_p_M + log_scale, 0))
            return float(np.maximum(mined_M - before_M, 0).sum()) - wanted

        return np.asarray(np.exp(np.minimum(log_p_M + brentq(excess, -50, 200), 0)))
    order = np.argsort(-logit_M, kind="stable")
    if rule.pick == "spread":
        deep = order[: _num_reaching(1 - before_M[order], rule.depth * wanted)]
        embedding_KD = stream.candidate_ND[inside_N][deep]
        order = deep[_spread(embedding_KD, np.random.default_rng(stream.seed))]
    taken = order[: _num_reaching(1 - before_M[order], wanted)]
    hard_M = np.zeros(len(logit_M))
    hard_M[taken] = 1.0
    return hard_M


def _num_reaching(added_M: Floats, wanted: float) -> int:
    """How many of the first add up to about `wanted`."""
    return int(np.searchsorted(np.cumsum(added_M), wanted)) + 1


def _spread(embedding_KD: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """An order of all rows by k-means++, the hardest first (Arthur and Vassilvitskii 2007)."""
    order = [0]
    distance_K = 1 - embedding_KD @ embedding_KD[0]
    for _ in range(len(embedding_KD) - 1):
        distance_K = np.maximum(distance_K, 0)
        distance_K[order] = 0
        total = distance_K.sum()
        if total <= 0:
            order += sorted(set(range(len(embedding_KD))) - set(order))
            break
        place = int(np.searchsorted(np.cumsum(distance_K), rng.random() * total, side="right"))
        order.append(min(place, len(embedding_KD) - 1))
        distance_K = np.minimum(distance_K, 1 - embedding_KD @ embedding_KD[order[-1]])
    return np.array(order)


def _fit(weight_N: Floats, wanted: float) -> Floats:
    """clip(c * weight_N, minimum, 1) with the sum `wanted`."""
    minimum = min(_MIN_PROBABILITY, 0.1 * wanted / len(weight_N))  # a floor, not the rule

    def probability_N(log_scale: float) -> Floats:
        return np.asarray(np.clip(np.exp(log_scale) * weight_N, minimum, 1))

    if wanted >= len(weight_N):
        return np.ones(len(weight_N))
    return probability_N(brentq(lambda c: probability_N(c).sum() - wanted, -50, 50))
