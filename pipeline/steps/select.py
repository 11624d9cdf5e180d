"""Adds `inclusion_probability` and `selected`: Poisson sampling with permanent random numbers.

A decision depends on the row and on the scale of its source alone, so that it is the same in any
order, on any machine, and after any crash, and a larger scale keeps all that a smaller one kept
(Ohlsson 1995, Coordination of samples using permanent random numbers).
Knows nothing of Ray, of files, or of how the scale was fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.dedup import looks_of
from pipeline.dataset.keys import unit_hash
from pipeline.dataset.schema import RejectReason
from pipeline.reference import KnownPositives

READS = (
    "label", "label_state", "doubt", "split", "content_hash", "perceptual_hash", "similarity",
    "reject_reason",
)  # fmt: skip
ADDS = ("inclusion_probability", "selected")


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


@dataclass(frozen=True)
class SelectionRule:
    """How candidates of one source are chosen.

    Training negatives: `inclusion_probability`. Negatives of val and test: `eval_probability`,
    whatever they look like, so that plain binomial intervals hold. Positives: 1.
    """

    scale: float
    beta: float
    offset: float
    min_probability: float
    eval_probability: float
    seed: int
    near: float  # similarity below which a look that is a positive's is chance
    ceiling: float | None  # similarity above which an unlabelled candidate is suspected

    def train_probability(self, similarity_B: NDArray[np.floating]) -> NDArray[np.float32]:
        """inclusion_probability_B of training negatives, as rows carry it."""
        return inclusion_probability(
            similarity_B,
            scale=self.scale,
            beta=self.beta,
            offset=self.offset,
            min_probability=self.min_probability,
        ).astype(np.float32)


def select_batch(rows: pa.Table, rule: SelectionRule, positives: KnownPositives) -> pa.Table:
    """Decides each usable row; rejected ones get no probability and are not selected.

    Sets `reject_reason` for candidates whose label cannot be trusted: the very bytes of a
    positive (conflicting_labels), doubted by its source, or unlabelled and too similar
    (suspected_positive). What looks the same as a positive and is near is one of these two, too.
    """
    reasons = rows["reject_reason"].to_pylist()
    hashes = rows["content_hash"].to_pylist()
    labels = rows["label"].to_pylist()
    doubts = rows["doubt"].to_pylist()
    similarity_B = rows["similarity"].to_numpy().astype(np.float32)
    # Flat pictures and silhouettes may share a hash with what looks nothing like them.
    is_copy_B = positives.looks.resembles(looks_of(rows)) & (similarity_B >= rule.near)
    ceiling = np.inf if rule.ceiling is None else rule.ceiling
    is_suspect_B = is_copy_B | (similarity_B > ceiling)
    for b, state in enumerate(rows["label_state"].to_pylist()):
        if reasons[b] is None and labels[b] == "":
            reasons[b] = _doubt(
                doubts[b],
                is_unlabelled=state == "unknown",
                is_suspect=bool(is_suspect_B[b]),
                is_known_positive=hashes[b] in positives.content_hashes
                or (state == "verified_absent" and bool(is_copy_B[b])),
            )
    is_usable_B = np.array([reason is None for reason in reasons], bool)
    probability_B, is_drawn_B = draw(
        rule,
        similarity_B=similarity_B,
        content_hashes=hashes,
        is_positive_B=np.array([label != "" for label in labels], bool),
        is_train_B=np.array([split == "train" for split in rows["split"].to_pylist()], bool),
    )
    selected_B = is_usable_B & is_drawn_B
    column = rows.schema.get_field_index("reject_reason")
    rows = rows.set_column(column, "reject_reason", pa.array(reasons, pa.string()))
    rows = rows.append_column(
        "inclusion_probability", pa.array(probability_B, pa.float32(), mask=~is_usable_B)
    )
    return rows.append_column("selected", pa.array(selected_B, pa.bool_()))


def draw(
    rule: SelectionRule,
    *,
    similarity_B: NDArray[np.floating],
    content_hashes: Sequence[str],
    is_positive_B: NDArray[np.bool_],
    is_train_B: NDArray[np.bool_],
    at_least_B: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """inclusion_probability_B, and whether the permanent random number of each row is below it.

    at_least_B: what a later rule has raised it to. The union of two draws by the same number is
    one by the larger probability.
    """
    probability_B = np.where(
        is_train_B, rule.train_probability(similarity_B), np.float32(rule.eval_probability)
    )
    if at_least_B is not None:
        probability_B = np.maximum(probability_B, at_least_B)
    probability_B[is_positive_B] = 1.0
    chance_B = np.array([unit_hash(rule.seed, content_hash) for content_hash in content_hashes])
    return probability_B, chance_B < probability_B


def _doubt(
    of_source: str | None, *, is_known_positive: bool, is_unlabelled: bool, is_suspect: bool
) -> str | None:
    if is_known_positive:
        return RejectReason.CONFLICTING_LABELS
    if of_source is not None:
        return of_source
    if is_unlabelled and is_suspect:
        return RejectReason.SUSPECTED_POSITIVE
    return None
