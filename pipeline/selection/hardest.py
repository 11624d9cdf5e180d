"""The hardest candidates, spread out: which training negatives a first head adds.

Of each fold (`selection.mining.fold_of`) those are deep whose logit is largest, twice as many as
are wanted. Half of the deep ones are taken, unlike each other, by k-means++ seeding (Arthur and
Vassilvitskii 2007): the hardest alone are often one kind of picture. A fold is judged by a head
that saw no negative of it, so that whether one of its candidates was drawn has no part in what is
taken of it: given the draws of the other folds, those taken have inclusion probability 1, and all
others that of their draw.

Knows nothing of Ray, files or heads. Shapes: N candidates, K deep ones, D embedding.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.keys import unit_hash

_DEPTH = 2.0
# k-means++ looks at all candidates again for each one that it takes: a group of this many takes
# half a second, however many groups there are.
_GROUP = 1024

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


def deep_candidates(logit_N: Floats, probability_N: Floats, wanted: float) -> Ints:
    """Positions of the largest logits of a fold, which would add twice `wanted`; largest first.

    A candidate adds 1 - probability_N to what is expected anyway. One of logit -inf is never taken.
    """
    order = np.lexsort((np.arange(len(logit_N)), -logit_N))
    order = order[logit_N[order] > -np.inf]
    if wanted <= 0:
        return order[:0]
    added = np.cumsum(1 - probability_N[order].astype(np.float64))
    return order[: int(np.searchsorted(added, _DEPTH * wanted)) + 1]


def take_spread(
    content_hashes: Sequence[str],
    embedding_KD: Floats,
    *,
    probability_K: Floats,
    wanted: float,
) -> set[str]:
    """The content hashes of those deep candidates that are taken: they add about `wanted`.

    The candidates are given hardest first, embedding_KD L2-normalised.
    """
    added_K = 1 - probability_K.astype(np.float64)
    share = wanted / max(float(added_K.sum()), 1e-12)
    if share >= 1:
        return set(content_hashes)
    num_groups = max(1, math.ceil(len(content_hashes) / _GROUP))
    group_K = np.array([int(unit_hash("spread", each) * num_groups) for each in content_hashes])
    taken: set[str] = set()
    for group in range(num_groups):
        own = np.flatnonzero(group_K == group)
        missing = share * float(added_K[own].sum())
        for rank in _spread(embedding_KD[own].astype(np.float32), np.random.default_rng(group)):
            if missing <= 1e-9:
                break
            missing -= float(added_K[own[rank]])
            taken.add(content_hashes[own[rank]])
    return taken


def _spread(embedding_KD: NDArray[np.float32], rng: np.random.Generator) -> Iterator[int]:
    """Rows, the first one first; then each with a chance that grows with its distance from them.

    Copies of rows that were given are left out.
    """
    distance_K = np.full(len(embedding_KD), np.inf)
    place = 0
    for _ in range(len(embedding_KD)):
        yield place
        # float16 embeddings: cosines of copies are within some 1e-3 of 1.
        nearer_K = 1 - (embedding_KD @ embedding_KD[place]).astype(np.float64)
        distance_K = np.minimum(distance_K, np.where(nearer_K < 2e-3, 0, nearer_K))
        distance_K[place] = 0.0
        chance_K = np.cumsum(distance_K)
        if chance_K[-1] <= 0:
            return
        place = int(np.searchsorted(chance_K, rng.random() * chance_K[-1], side="right"))
