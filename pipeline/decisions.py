"""Whether the rows of a data set with a cascade are decided as its plans say.

Shapes: N rows of a ledger.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cascade import needs_full_look
from pipeline.records import CHEAP_SIMILARITY
from pipeline.steps.select import SelectionRule, decisive_similarity, draw

# Exponentials of two machines may differ in the last bit.
_TOLERANCE = 1e-6


def find_wrong_decisions(rows: pa.Table, rule: SelectionRule) -> list[str]:
    """What is wrong with usable rows, a line each.

    Each carries the probability, or, without a full look, the bound, that follows from what was
    seen of it, and none was left without a full look that could have been selected or suspected.
    """
    if CHEAP_SIMILARITY not in rows.column_names:
        return [f"{key}: no {CHEAP_SIMILARITY}" for key in rows["key"].to_pylist()[:1]]
    rows = rows.filter(rows["reject_reason"].is_null())
    labels, splits = (rows[name].to_pylist() for name in ("label", "split"))
    probability_N, _ = draw(
        rule,
        similarity_B=decisive_similarity(rows, rule.cascade),
        content_hashes=rows["content_hash"].to_pylist(),
        is_positive_B=np.array([label != "" for label in labels], bool),
        is_train_B=np.array([split == "train" for split in splits], bool),
    )
    is_other_N = ~np.isclose(
        rows["inclusion_probability"].to_numpy(), probability_N, rtol=_TOLERANCE, atol=0
    )
    is_skipped = rows["similarity"].is_null()
    needs_look_N = needs_full_look(rows.drop_columns(["similarity"]), rule, frozenset())
    claims = {
        "inclusion_probability against the rule": is_other_N,
        "selected without a full look": pc.and_(rows["selected"], is_skipped).to_numpy(),
        "left without a full look, which could have decided": is_skipped.to_numpy() & needs_look_N,
    }
    keys = rows["key"].to_pylist()
    return [f"{keys[n]}: {what}" for what, found in claims.items() for n in np.flatnonzero(found)]
