"""Adds `inclusion_probability` and `selected`: Poisson sampling with permanent random numbers.

A decision depends only on the row and the rule of its source, so that it is the same in any order,
on any machine, and after any crash. A larger scale keeps all rows that a smaller one kept (Ohlsson
1995, Coordination of samples using permanent random numbers).
Knows nothing of Ray, of files, or of how the scale was fitted.
"""

import numpy as np
import pyarrow as pa

from pipeline.dataset.dedup import perceptual_hashes
from pipeline.dataset.schema import RejectReason, with_columns
from pipeline.selection.reference import KnownPositives
from pipeline.selection.rule import SelectionRule, poisson_sample

READS = (
    "label", "label_state", "doubt", "split", "content_hash", "perceptual_hash", "similarity",
    "reject_reason",
)  # fmt: skip
ADDS = ("inclusion_probability", "selected")


def select_batch(rows: pa.Table, rule: SelectionRule, positives: KnownPositives) -> pa.Table:
    """Draws the usable rows; rejected ones get no probability and are not selected.

    Rejects candidates whose label cannot be trusted: those with the bytes of a positive
    (conflicting_labels), those that their source doubts, and unlabelled ones that are too similar
    (suspected_positive). A near candidate with the perceptual hash of a positive is rejected too:
    as conflicting if it is verified absent, as suspected if it is unlabelled.
    """
    reasons = rows["reject_reason"].to_pylist()
    hashes = rows["content_hash"].to_pylist()
    labels = rows["label"].to_pylist()
    doubts = rows["doubt"].to_pylist()
    similarity_B = rows["similarity"].to_numpy().astype(np.float32)
    # Similarity too: flat pictures and silhouettes may share a hash with unlike images.
    is_copy_B = positives.near_duplicates.resembles(perceptual_hashes(rows)) & (
        similarity_B >= rule.near
    )
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
    probability_B, is_drawn_B = poisson_sample(
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
