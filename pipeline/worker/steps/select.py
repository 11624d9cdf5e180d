"""Adds `inclusion_probability` and `selected`: Poisson sampling with permanent random numbers.

A decision depends on the row and on the scale of its source alone, so that it is the same in any
order, on any machine, and after any crash, and a larger scale keeps all that a smaller one kept
(Ohlsson 1995, Coordination of samples using permanent random numbers).
Knows nothing of Ray, of files, or of how the scale was fitted.
"""

import numpy as np
import pyarrow as pa

from pipeline.dataset.dedup import perceptual_hashes
from pipeline.dataset.schema import RejectReason, with_columns
from pipeline.selection.reference import KnownPositives
from pipeline.selection.rule import SelectionRule, draw

READS = (
    "label", "label_state", "doubt", "split", "content_hash", "perceptual_hash", "similarity",
    "reject_reason",
)  # fmt: skip


ADDS = ("inclusion_probability", "selected")


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
    is_copy_B = positives.looks.resembles(perceptual_hashes(rows)) & (similarity_B >= rule.near)
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
    return with_columns(
        rows,
        reject_reason=pa.array(reasons, pa.string()),
        inclusion_probability=pa.array(probability_B, pa.float32(), mask=~is_usable_B),
        selected=pa.array(selected_B, pa.bool_()),
    )


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
