"""Which rows a closer look may still decide, by what is known of them: labels, then a bound.

A training negative is selected iff u < pi(s), where its random number u is known before any look
and pi grows with the similarity s. So an upper bound of s decides most of them.
Shapes: B rows.
"""

from collections.abc import Set

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.records import CHEAP_SIMILARITY, RejectReason
from pipeline.steps.select import SelectionRule, decisive_similarity, draw, upper_similarity

Mask = NDArray[np.bool_]


def choose_looks(
    rows: pa.Table, rule: SelectionRule, positive_hashes: Set[str]
) -> tuple[Mask, Mask]:
    """full_B and cheap_B: which rows need a full look whatever a cheap one would tell, and which
    a cheap one. The others are decided as they are.

    Val and test negatives are drawn whatever they look like, so that a look comes after the draw.
    """
    rows = rows.append_column(CHEAP_SIMILARITY, pa.nulls(rows.num_rows, pa.float32()))
    open_B = needs_full_look(rows, rule, positive_hashes)
    is_train_negative = pc.and_(pc.equal(rows["split"], "train"), pc.equal(rows["label"], ""))
    can_be_bounded = pc.and_(is_train_negative, rows["doubt"].is_null())
    cheap_B = open_B & _mask(can_be_bounded) & (rule.cascade is not None)
    return open_B & ~cheap_B, cheap_B


def needs_full_look(rows: pa.Table, rule: SelectionRule, positive_hashes: Set[str]) -> Mask:
    """full_B: which rows may be selected, or may be suspected positives, for all that is known.

    rows: with `cheap_similarity`, null where no cheap look has been. Whatever is left out here is
    not selected: its random number is over its bound.
    """
    is_positive_B = ~_mask(pc.equal(rows["label"], ""))
    is_train_B = _mask(pc.equal(rows["split"], "train"))
    hashes = rows["content_hash"].to_pylist()
    unseen = rows.append_column("similarity", pa.nulls(rows.num_rows, pa.float32()))
    _, is_drawn_B = draw(
        rule,
        similarity_B=decisive_similarity(unseen, rule.cascade),
        content_hashes=hashes,
        is_positive_B=is_positive_B,
        is_train_B=is_train_B,
    )
    is_known_B = np.array([content_hash in positive_hashes for content_hash in hashes], bool)
    conflicting = pc.equal(rows["doubt"], RejectReason.CONFLICTING_LABELS.value)
    is_conflicting_B = (is_known_B | _mask(conflicting)) & ~is_positive_B
    to_quarantine_B = _mask(pc.equal(rows["doubt"], RejectReason.SUSPECTED_POSITIVE.value))
    may_be_positive_B = _may_be_positive(rows, rule) & is_train_B
    full_B = is_drawn_B | to_quarantine_B | may_be_positive_B
    return full_B & ~is_conflicting_B & _mask(rows["reject_reason"].is_null())


def _may_be_positive(rows: pa.Table, rule: SelectionRule) -> Mask:
    """Unlabelled, and not known to lie under the ceiling of what is above suspicion."""
    if rule.ceiling is None:
        return np.zeros(rows.num_rows, bool)
    upper_B = upper_similarity(rows, rule.cascade)
    return _mask(pc.equal(rows["label_state"], "unknown")) & ~(upper_B <= rule.ceiling)


def _mask(claims: pa.ChunkedArray) -> Mask:
    """Null is no."""
    return np.asarray(pc.fill_null(claims, False).to_numpy(zero_copy_only=False), bool)
