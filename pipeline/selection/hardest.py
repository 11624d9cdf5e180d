"""The hardest candidates, spread out: which training negatives a first head adds.

Each fold of the candidates (`selection.mining.fold_of`) is judged by a head that saw no negative of
it. Of a fold those are deep whose logit is largest, twice as many as are wanted. Half of the deep
ones are taken, unlike each other, by k-means++ seeding (Arthur and Vassilvitskii 2007): the hardest
alone are often one kind of picture. Whether a candidate was drawn has no part in what is taken of
its fold, so that, given the draws of the other folds, those taken have inclusion probability 1 and
all others that of their draw.

Knows nothing of Ray or files. Shapes: N candidates, K deep ones, D embedding, F folds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.keys import unit_hash
from pipeline.selection.first_head import FirstHead, fit_first_heads
from pipeline.selection.mining import fold_of

NUM_FOLDS = 3
_DEPTH = 2.0
# More negatives hardly change a head, but take minutes and gigabytes to fit.
_MAX_FITTED = 1536  # per fold
# k-means++ looks at all candidates again for each one that it takes: a group of this many takes
# half a second, however many groups there are.
_GROUP = 1024
_FILES_AT_ONCE = 16

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


class Candidates(NamedTuple):
    """Usable training negatives, in the order of their files."""

    file_N: Ints  # number of the file that has their embedding
    row_N: Ints  # position in it
    hash_N: NDArray[np.bytes_]  # content hash
    fold_N: Ints
    similarity_N: NDArray[np.float32]
    probability_N: NDArray[np.float64]  # of being drawn
    is_drawn_N: NDArray[np.bool_]
    is_unknown_N: NDArray[np.bool_]  # nobody has verified that it shows no target

    def hashes(self, chosen: Ints) -> list[str]:
        return [each.decode() for each in self.hash_N[chosen].tolist()]


class Positives(NamedTuple):
    """embedding_PD, L2-normalised, and content hashes."""

    embedding_PD: Floats
    content_hashes: Sequence[str]


# embedding_MD of the candidates at M positions, in their order.
ReadEmbeddings = Callable[[Ints], NDArray[np.float32]]


def choose_hardest(
    found: Candidates,
    read: ReadEmbeddings,
    positives: Positives,
    *,
    kept: NDArray[np.bytes_],
    is_guarded: bool,
) -> set[str]:
    """Content hashes of as many as are drawn, in expectation, and of those in `kept`.

    kept: content hashes of what was taken with a smaller budget; it is part of the number.
    is_guarded: whether an unlabelled image that may show the target is passed over.
    """
    if not len(found.hash_N) or found.probability_N.min() == 1:
        return set()  # all of them are drawn
    is_kept_N = np.isin(found.hash_N, kept)
    heads = _fit(found, read, positives)
    logit_N = _judge(found, read, heads, is_guarded=is_guarded)
    logit_N[is_kept_N] = -np.inf  # they are taken anyway
    taken = set(found.hashes(np.flatnonzero(is_kept_N)))
    for fold in range(NUM_FOLDS):
        own = np.flatnonzero(found.fold_N == fold)
        probability_M = found.probability_N[own]
        wanted = float(probability_M.sum() - (1 - probability_M[is_kept_N[own]]).sum())
        deep = own[deep_candidates(logit_N[own], probability_M, wanted)]
        if len(deep):
            added_K = 1 - found.probability_N[deep]
            taken |= take_spread(found.hashes(deep), read(deep), added_K=added_K, wanted=wanted)
    return taken


def _fit(found: Candidates, read: ReadEmbeddings, positives: Positives) -> list[FirstHead | None]:
    drawn = np.concatenate([_some_drawn(found, fold) for fold in range(NUM_FOLDS)])
    return fit_first_heads(
        positives.embedding_PD,
        read(drawn),
        found.probability_N[drawn],
        positive_fold_P=fold_of(positives.content_hashes, NUM_FOLDS),
        negative_fold_N=found.fold_N[drawn],
        num_folds=NUM_FOLDS,
    )


def _some_drawn(found: Candidates, fold: int) -> Ints:
    """Positions of at most `_MAX_FITTED` drawn candidates of a fold, whatever others are drawn."""
    drawn = np.flatnonzero(found.is_drawn_N & (found.fold_N == fold))
    chance = [unit_hash("fitted", each) for each in found.hashes(drawn)]
    return np.sort(drawn[np.argsort(chance, kind="stable")[:_MAX_FITTED]])


def _judge(
    found: Candidates,
    read: ReadEmbeddings,
    heads: Sequence[FirstHead | None],
    *,
    is_guarded: bool,
) -> NDArray[np.float64]:
    """logit_N by the head that has not seen their fold; -inf of what may show a target.

    Where there was too little to fit a head, similarity takes its place.
    """
    logit_N = found.similarity_N.astype(np.float64)
    group_N = found.file_N // _FILES_AT_ONCE
    for own in np.split(np.arange(len(logit_N)), np.flatnonzero(np.diff(group_N)) + 1):
        embedding_MD, fold_M = read(own), found.fold_N[own]
        for fold, head in enumerate(heads):
            if head is not None:
                here_M = fold_M == fold
                logit_N[own[here_M]] = head.logits(embedding_MD[here_M])
    if is_guarded:
        guard_F = np.array([np.inf if head is None else head.guard for head in heads])
        logit_N[found.is_unknown_N & (logit_N >= guard_F[found.fold_N])] = -np.inf
    return logit_N


def deep_candidates(logit_N: Floats, probability_N: Floats, wanted: float) -> Ints:
    """Positions of the largest logits of a fold, which would add twice `wanted`; largest first.

    A candidate adds 1 - probability_N to what is expected anyway. One of logit -inf is never taken.
    """
    order = np.argsort(-logit_N, kind="stable")
    order = order[logit_N[order] > -np.inf]
    if wanted <= 0:
        return order[:0]
    added = np.cumsum(1 - probability_N[order])
    return order[: int(np.searchsorted(added, _DEPTH * wanted)) + 1]


def take_spread(
    content_hashes: Sequence[str], embedding_KD: Floats, *, added_K: Floats, wanted: float
) -> set[str]:
    """The content hashes of those deep candidates that are taken: they add about `wanted`.

    The candidates are given hardest first, embedding_KD L2-normalised.
    """
    share = wanted / max(float(added_K.sum()), 1e-12)
    if share >= 1:
        return set(content_hashes)
    num_groups = math.ceil(len(content_hashes) / _GROUP)
    group_K = np.array([int(unit_hash("spread", each) * num_groups) for each in content_hashes])
    taken: set[str] = set()
    for group in range(num_groups):
        own = np.flatnonzero(group_K == group)
        missing = share * float(added_K[own].sum())
        for rank in _spread(embedding_KD[own].astype(np.float32), np.random.default_rng(group)):
            if missing <= 1e-9:
                break
            if content_hashes[own[rank]] not in taken:
                missing -= float(added_K[own[rank]])
                taken.add(content_hashes[own[rank]])
    return taken


def _spread(embedding_KD: NDArray[np.float32], rng: np.random.Generator) -> Iterator[int]:
    """All rows, the first one first; then each with a chance that grows with its distance.

    Copies of rows that were given come last, in their order.
    """
    distance_K = np.full(len(embedding_KD), np.inf)
    is_given_K = np.zeros(len(embedding_KD), bool)
    place = 0
    while not is_given_K.all():
        yield place
        is_given_K[place] = True
        distance_M = 1 - (embedding_KD @ embedding_KD[place]).astype(np.float64)
        # float16: the cosine of copies is within 0.002 of 1.
        distance_K = np.minimum(distance_K, np.where(distance_M < 2e-3, 0, distance_M))
        distance_K[place] = 0.0
        chance_K = np.cumsum(distance_K)
        if chance_K[-1] <= 0:
            yield from np.flatnonzero(~is_given_K).tolist()
            return
        place = int(np.searchsorted(chance_K, rng.random() * chance_K[-1], side="right"))
