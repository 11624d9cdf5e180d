"""Which pictures the next round shows, by heads that learn from all verdicts so far.

The heads are those of the build (`pipeline.selection.first_head`): each has seen nothing of its
fold, neither a draw nor a verdict. A fold's pictures are judged and chosen by its own head alone,
so that whether a picture was drawn, or how it was rated, has no part in whether it is chosen:

picked   the most telling of a fold, for certain, whether they were drawn or not: probability 1
drawn    those with a permanent random number below p, the larger p for what the head calls the
         target; p is the largest of all rounds, as the union of draws by the same numbers is

Everything is a function of the candidates, the verdicts so far and the seed of the data set.
Shapes: N candidates, D embedding, P positives.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.curate.label.candidates import Candidates
from pipeline.curate.label.log import Standing
from pipeline.dataset.keys import unit_hash
from pipeline.selection.first_head import FirstHead, fit_first_heads, guard_of
from pipeline.selection.hardest import NUM_FOLDS, Positives, take_spread
from pipeline.selection.mining import fold_of

# Pictures of a round; what there are too few of, others take the place of.
_PICKS = {"suspected": 12, "hardest": 12, "unlike": 9, "uncertain": 15}
# Expected number per round of those drawn from all, and from what the head calls the target.
_DRAWN_OF_ALL, _DRAWN_OF_CALLED = 6, 6
# Among so many of the largest margins, or a fiftieth, are those that positives do not resemble.
_UNLIKE_DEPTH = 600
_ROWS_AT_ONCE = 8192
# More drawn negatives hardly change a head, but a person waits for it.
_MAX_FITTED = 384  # per fold

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """What the heads say of every candidate: at a margin of 0 or more they call it the target.

    The threshold of a head is the logit that 95 % of the data set's positives reach which it has
    not seen.
    """

    model: str  # digest of the heads
    margin_N: NDArray[np.float32]

    @property
    def is_called_N(self) -> Bools:
        return self.margin_N >= 0


def judge(found: Candidates, standing: Standing, positives: Positives, *, ceiling: float) -> Judged:
    """Fits the heads and judges all candidates.

    ceiling: the similarity that takes the place of a threshold where there is no head.
    """
    rated = {
        verdict: found_positions(found, standing, verdict) for verdict in ("positive", "negative")
    }
    negatives = _negatives(found, standing, rated["negative"])
    probability_N = inclusion_probability(found, standing)
    hashes = [*positives.content_hashes, *(found.hashes[n] for n in rated["positive"])]
    heads = fit_first_heads(
        np.concatenate([positives.embedding_PD, _embeddings(found, rated["positive"])]),
        _embeddings(found, negatives),
        probability_N[negatives],
        positive_fold_P=fold_of(hashes, NUM_FOLDS),
        negative_fold_N=found.fold_N[negatives],
        num_folds=NUM_FOLDS,
    )
    heads = [_guarded(head, positives, fold) for fold, head in enumerate(heads)]
    return Judged(_digest(heads), _margins(found, heads, ceiling))


def _guarded(head: FirstHead | None, positives: Positives, fold: int) -> FirstHead | None:
    """The head, with the guard that the positives of the data set give it.

    Rated ones have no part in it: a verdict on a fold's picture must not move its threshold.
    """
    is_own_P = fold_of(positives.content_hashes, NUM_FOLDS) == fold
    if head is None or not is_own_P.any():
        return head
    own_PD = positives.embedding_PD[is_own_P].astype(np.float32)
    return replace(head, guard=guard_of(head.logits(own_PD)))


def found_positions(found: Candidates, standing: Standing, verdict: str) -> Ints:
    """Positions of the candidates of a verdict."""
    here = [found.position[each] for each in standing.of(verdict) if each in found.position]
    return np.array(sorted(here), np.int64)


def inclusion_probability(found: Candidates, standing: Standing) -> NDArray[np.float64]:
    """probability_N of being in the data set, as it was built and if verdicts were applied."""
    probability_N = np.nan_to_num(found.column("inclusion_probability").astype(np.float64))
    for content_hash, own in standing.probability.items():
        if content_hash in found.position:
            n = found.position[content_hash]
            probability_N[n] = max(probability_N[n], own)
    return probability_N


def choose_round(found: Candidates, judged: Judged, standing: Standing, rater: str) -> "Chosen":
    """The next round of a person: about 60 pictures.

    What was drawn and not rated comes again, since the sample is to be complete.
    """
    number = standing.num_rounds + 1
    is_open_N = ~_is_in(found, standing.taken_from(rater))
    picked: dict[int, str] = {}
    for fold in range(NUM_FOLDS):
        own = np.flatnonzero((found.fold_N == fold) & is_open_N)
        for why, position in _pick(found, judged, standing, own):
            picked[position] = why
    probability_N = drawing_probability(found, judged, number)
    drawn = np.flatnonzero(found.chance_N < probability_N)
    raised = {
        found.hashes[n]: float(probability_N[n])
        for n in drawn
        if probability_N[n] > standing.drawn.get(found.hashes[n], 0)
    }
    new = {*picked, *drawn.tolist()}
    shown = [n for n in new if found.hashes[n] not in standing.verdicts]
    shown.sort(key=lambda n: (-judged.margin_N[n], found.hashes[n]))
    return Chosen(
        number=number,
        shown=tuple(found.hashes[n] for n in shown),
        picked={found.hashes[n]: why for n, why in sorted(picked.items())},
        drawn=raised,
    )


@dataclass(frozen=True)
class Chosen:
    """Content hashes. picked: also those that are rated already because they were drawn."""

    number: int
    shown: tuple[str, ...]
    picked: dict[str, str]  # and why
    drawn: dict[str, float]  # with their probability, where it has risen


def drawing_probability(found: Candidates, judged: Judged, number: int) -> NDArray[np.float64]:
    """probability_N with which a picture is drawn in one of the first `number` rounds.

    What a fold's head calls the target shares the draws of its fold.
    """
    of_all = min(1.0, _DRAWN_OF_ALL * number / max(len(found), 1))
    probability_N = np.full(len(found), of_all)
    for fold in range(NUM_FOLDS):
        called = np.flatnonzero((found.fold_N == fold) & judged.is_called_N)
        if len(called):
            own = min(1.0, _DRAWN_OF_CALLED * number / NUM_FOLDS / len(called))
            probability_N[called] = max(own, of_all)
    return probability_N


def _pick(
    found: Candidates, judged: Judged, standing: Standing, own: Ints
) -> Iterator[tuple[str, int]]:
    """Why, and the position, of those that are picked of the open candidates of a fold."""
    is_taken_M, missing = np.zeros(len(own), bool), 0
    for why, key_M in _orders(found, judged, standing, own).items():
        wanted = _PICKS[why] // NUM_FOLDS + missing
        order = np.argsort(key_M, kind="stable")
        deep = order[(key_M[order] < np.inf) & ~is_taken_M[order]][: 2 * wanted]
        taken = take_spread(
            [found.hashes[own[m]] for m in deep],
            _embeddings(found, own[deep]),
            added_K=np.ones(len(deep)),
            wanted=float(wanted),
        )
        missing = wanted - len(taken)
        for m in deep:
            if found.hashes[own[m]] in taken:
                is_taken_M[m] = True
                yield why, int(own[m])


def _orders(
    found: Candidates, judged: Judged, standing: Standing, own: Ints
) -> dict[str, NDArray[np.floating]]:
    """By what is picked, smallest first; inf is not picked. Nothing here depends on a draw."""
    margin_M = judged.margin_N[own]
    is_known_M = _is_known(found, standing)[own]
    similarity_M = np.nan_to_num(found.column("similarity")[own].astype(np.float32))
    depth = min(max(_UNLIKE_DEPTH, len(own) // 50), len(own))
    is_deep_M = margin_M >= np.sort(margin_M)[-depth] if len(own) else np.zeros(0, bool)
    return {
        "suspected": np.where(is_known_M, np.inf, -margin_M),
        "hardest": np.where(is_known_M | (margin_M < 0), -margin_M, np.inf),
        # What the head calls the target, or nearly, though no positive resembles it.
        "unlike": np.where(is_deep_M, similarity_M, np.inf),
        "uncertain": np.abs(margin_M),
    }


def _is_known(found: Candidates, standing: Standing) -> Bools:
    """Whether the source says that a picture shows no target; verdicts have no part in it."""
    is_known_N = found.column("label_state") == "verified_absent"
    for content_hash, state in standing.label_states.items():
        if content_hash in found.position:
            is_known_N[found.position[content_hash]] = state == "verified_absent"
    return np.asarray(is_known_N)


def _negatives(found: Candidates, standing: Standing, rated: Ints) -> Ints:
    """Positions of those to fit: what was rated so, and of each fold some that are selected."""
    is_left_N = found.column("selected").astype(bool) & ~_is_in(found, standing.verdicts)
    chosen = [rated]
    for fold in range(NUM_FOLDS):
        own = np.flatnonzero(is_left_N & (found.fold_N == fold))
        chance = np.array([unit_hash("fitted", found.hashes[n]) for n in own])
        chosen.append(own[np.argsort(chance, kind="stable")[:_MAX_FITTED]])
    return np.sort(np.concatenate(chosen))


def _margins(
    found: Candidates, heads: list[FirstHead | None], ceiling: float
) -> NDArray[np.float32]:
    margin_N = found.column("similarity").astype(np.float32) - np.float32(ceiling)
    for start in range(0, len(found), _ROWS_AT_ONCE):
        embedding_BD = found.embedding_ND[start : start + _ROWS_AT_ONCE].astype(np.float32)
        fold_B = found.fold_N[start : start + _ROWS_AT_ONCE]
        for fold, head in enumerate(heads):
            if head is not None:
                here = np.flatnonzero(fold_B == fold)
                margin_N[start + here] = head.logits(embedding_BD[here]) - np.float32(head.guard)
    return margin_N


def _digest(heads: list[FirstHead | None]) -> str:
    digest = hashlib.sha256()
    for head in heads:
        if head is not None:
            digest.update(head.weight_D.tobytes() + np.array([head.bias, head.guard]).tobytes())
    return digest.hexdigest()[:16]


def _embeddings(found: Candidates, positions: Ints) -> NDArray[np.float32]:
    return found.embedding_ND[positions].astype(np.float32)


def _is_in(found: Candidates, hashes: Iterable[str]) -> Bools:
    is_in_N = np.zeros(len(found), bool)
    is_in_N[[found.position[each] for each in hashes if each in found.position]] = True
    return is_in_N
