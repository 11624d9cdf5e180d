"""A trained model as workers run it. Does not know how it was trained.

Shapes: B batch, F folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.preprocessing import Preprocessing
from pipeline.encoders.sessions import open_session
from pipeline.selection.mining import fold_of

Reads = Literal["embedding", "pixels"]


@dataclass(frozen=True)
class Scorer:
    """A trained model in ONNX with one input (B first) and the output scored_BF2.

    [..., 0] is the log-odds of showing a target at the prevalence of val, the largest of all
    targets; [..., 1] is the margin of the logit over the one that 95 % of the positives of val
    reach. Fold f is scored by a model that saw no negative of fold f (`selection.mining`).
    """

    model: bytes
    reads: Reads
    num_folds: int
    preprocessing: Preprocessing  # where it reads pixels
    fingerprint: str
    about: Mapping[str, Any]  # for `MinedRecord`


class OpenScorer:
    """A scorer with its ONNX session, on one CPU core; equal batches give equal bits."""

    def __init__(self, scorer: Scorer) -> None:
        self._session = open_session(scorer.model)
        self._num_folds = scorer.num_folds

    def score(
        self, inputs_N: NDArray[Any], content_hashes: Sequence[str], batch_size: int
    ) -> NDArray[np.float32]:
        """scored_N2, each row by the model that left its fold out."""
        fold_N = fold_of(content_hashes, self._num_folds)
        scored_N2 = np.empty((len(content_hashes), 2), np.float32)
        for start in range(0, len(content_hashes), batch_size):
            here = slice(start, start + batch_size)
            scored_BF2 = self._session.run(None, {"inputs": inputs_N[here]})[0]
            scored_N2[here] = scored_BF2[np.arange(len(scored_BF2)), fold_N[here]]
        return scored_N2
