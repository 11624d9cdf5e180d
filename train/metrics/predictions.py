"""`predictions.parquet`: a run's logits for rows that it has not seen, and where their images are.

Those are the rows of val and test. With several folds they are also the rows of train: all
positives, and a uniform subset of the negatives (`thin_to_uniform`); the logit of a row of train or
val is then that of the head that is not trained on its fold.

One row per sample: key, source, stratum, split, label, logit (raw, of the first target), with
several targets one logit_<target> each, similarity, inclusion_probability, the location of the
image in the data set (shard, tar_offset, tar_size in bytes), its uri in the source, and
`stratum_by_similarity`.
Shapes: N samples, K targets.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset.keys import unit_hash
from pipeline.dataset.metadata import ReferenceInfo, strata_by_similarity
from pipeline.dataset.schema import Stratum, with_columns
from train.metrics.ranking import Bools, Floats, has_both
from train.model.info import logit_column

Place: TypeAlias = tuple[str, str]  # of a picture in a data set: its key, and its shard's path

_STRATA: tuple[Stratum, ...] = ("near", "mid", "far", "generated")
_COPIED = (
    "key", "source", "stratum", "split", "label", "similarity", "inclusion_probability", "shard",
    "tar_offset", "tar_size", "uri",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TargetPredictions:
    """The rows of one split for one target: rows with its label are positive, all others are not.

    weights_N is 1 / inclusion_probability. stratum_N is what the source states, else by similarity;
    similarity_stratum_N is always by similarity. Both are "" and similarity_N is nan if unknown.
    is_known_source_N: whether there are negatives of its source among the rows not of test.
    """

    target: str
    rows: pa.Table
    is_positive_N: Bools
    logits_N: Floats
    weights_N: Floats
    stratum_N: NDArray[np.str_]
    similarity_stratum_N: NDArray[np.str_]
    source_N: NDArray[np.str_]
    is_known_source_N: Bools
    similarity_N: Floats

    @property
    def strata(self) -> list[str]:
        """The strata of the negatives, near first."""
        present = set(self.stratum_N[~self.is_positive_N].tolist())
        return [stratum for stratum in _STRATA if stratum in present]

    @property
    def has_both(self) -> bool:
        return has_both(self.is_positive_N)


def prediction_rows(
    rows: pa.Table,
    logits_NK: NDArray[np.float32],
    *,
    targets: Sequence[str],
    reference: ReferenceInfo | None,
) -> pa.Table:
    """Rows of predictions.parquet. rows: of sidecars, with the path of the tar as `shard`."""
    stratum, by_similarity = assign_strata(rows, reference)
    rows = rows.set_column(rows.schema.get_field_index("stratum"), "stratum", stratum)
    table = rows.select(list(_COPIED))
    table = table.add_column(5, "logit", pa.array(logits_NK[:, 0], pa.float32()))
    if len(targets) > 1:
        for index, target in enumerate(targets):
            column = pa.array(logits_NK[:, index], pa.float32())
            table = table.append_column(f"logit_{target}", column)
    return table.append_column("stratum_by_similarity", by_similarity)


def assign_strata(rows: pa.Table, reference: ReferenceInfo | None) -> tuple[pa.Array, pa.Array]:
    """The stratum that the source states, else by similarity; and the stratum by similarity.

    Null for positives, and where unknown.
    """
    by_similarity = pa.nulls(rows.num_rows, pa.string())
    if reference is not None:
        by_similarity = strata_by_similarity(rows["similarity"], reference)
    is_negative = pc.equal(rows["label"], "")
    either = (pc.coalesce(rows["stratum"], by_similarity), by_similarity)
    stratum, similar = (
        pa.chunked_array(pc.if_else(is_negative, each, pa.scalar(None, pa.string())))
        for each in either
    )
    return stratum.combine_chunks(), similar.combine_chunks()


def thin_to_uniform(predictions: pa.Table) -> pa.Table:
    """Without so many negatives of train that those of each source are a uniform sample of it.

    A negative drawn with probability p stays with probability q / p, q the least p of its source,
    by a hash of its own: q is then the inclusion_probability of all that stay. Val needs none of
    this; its negatives are drawn uniformly.
    """
    is_thinned_N = pc.and_(
        pc.equal(predictions["split"], "train"), pc.equal(predictions["label"], "")
    ).to_numpy()
    source_N = np.array(predictions["source"].to_pylist(), object)
    probability_N = predictions["inclusion_probability"].to_numpy().copy()
    key_N = np.array(predictions["key"].to_pylist(), object)
    is_kept_N = np.ones(len(key_N), np.bool_)
    for source in set(source_N[is_thinned_N].tolist()):
        members = np.flatnonzero(is_thinned_N & (source_N == source))
        least = probability_N[members].min()
        u = np.array([unit_hash("uniform subset", key) for key in key_N[members]])
        is_kept_N[members] = u * probability_N[members] < least
        probability_N[members] = least
    thinned = with_columns(predictions, inclusion_probability=pa.array(probability_N))
    return thinned.filter(pa.array(is_kept_N))


def of_target(
    predictions: pa.Table,
    target: str,
    *,
    split: Literal["held_out", "test"],
    targets: Sequence[str],
) -> TargetPredictions:
    """The predictions of test, or of all other rows, for one target."""
    is_test = pc.equal(predictions["split"], "test")
    rows = predictions.filter(is_test if split == "test" else pc.invert(is_test)).combine_chunks()
    known = predictions.filter(pc.and_(pc.invert(is_test), pc.equal(predictions["label"], "")))

    def texts(column: str) -> NDArray[np.str_]:
        return np.array(rows[column].fill_null("").to_pylist(), dtype=np.str_)

    return TargetPredictions(
        target=target,
        rows=rows,
        is_positive_N=np.array(rows["label"].to_pylist(), dtype=object) == target,
        logits_N=rows[logit_column(target, targets)].to_numpy(),
        weights_N=1 / rows["inclusion_probability"].to_numpy().astype(np.float64),
        stratum_N=texts("stratum"),
        similarity_stratum_N=texts("stratum_by_similarity"),
        source_N=texts("source"),
        is_known_source_N=pc.is_in(rows["source"], pc.unique(known["source"])).to_numpy(),
        similarity_N=rows["similarity"].to_numpy(zero_copy_only=False).astype(np.float64),
    )


def write_predictions(run_dir: str | os.PathLike[str], predictions: pa.Table) -> None:
    content = io.BytesIO()
    pq.write_table(predictions, content, compression="zstd")
    storage.write_atomic(str(Path(run_dir) / "predictions.parquet"), content.getvalue())
