"""Kinds of the target that the positives of a data set may lack, as groups of pictures.

Positives that the model misses, each judged without having been trained on, are grouped by their
embeddings: a group is a kind that the others say little about. So are unlabelled pictures of the
data set that the model calls the target: they were too unlike the positives to be suspected when
the data set was built, and are of a kind that it lacks, or mistakes. Shapes: M pictures, D
embedding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.special import expit

from pipeline.dataset import Dataset
from pipeline.dataset.schema import embedding_matrix
from train.evaluate.neighbours import RunEmbedder
from train.metrics.probability import calibrated_logits
from train.model.info import TargetCalibration
from train.report.kinds import Kind, MissingKinds

_MOST = 256  # pictures that are grouped: the lowest, or the highest, logits
_LEAST = 2  # of a group: one picture is no kind
_MOST_GROUPS = 6
_MOST_POSITIVES = 1024  # that tell how alike two positives are
_NUM_NEAREST = 5  # as of `similarity`


def find_missing_kinds(
    embedder: RunEmbedder,
    predictions: pa.Table,
    calibration: TargetCalibration,
    *,
    target: str,
    logit_column: str,
    rows_of_training: pa.Table | None,
) -> MissingKinds:
    """Groups, the largest first; none where the data set has no embeddings.

    predictions: of all rows that a model or the head of their fold has not seen, not thinned.
    """
    if rows_of_training is None:
        return MissingKinds([], [])
    is_target = pc.equal(rows_of_training["label"], target)
    positive_RD = embedding_matrix(rows_of_training.filter(is_target))
    at_least = typical_similarity(positive_RD)
    reaches = pc.greater_equal(predictions[logit_column], calibration.threshold)
    shows = pc.equal(predictions["label"], target)
    missed = _take_first(predictions.filter(pc.and_(shows, pc.invert(reaches))), logit_column, 1)
    is_other = pc.equal(predictions["label"], "")
    called = _unlabelled(embedder, predictions.filter(pc.and_(is_other, reaches)))
    called = _take_first(called, logit_column, -1)

    def group(rows: pa.Table) -> list[Kind]:
        places = list(zip(rows["key"].to_pylist(), rows["shard"].to_pylist(), strict=True))
        embedding_MD = embedder.embed_places(places)
        if embedding_MD is None:
            return []
        logits_M = rows[logit_column].to_numpy()
        probability_M = expit(calibrated_logits(calibration, logits_M))
        pictures = rows.select(["key", "source", "shard", "tar_offset", "tar_size"]).to_pylist()
        groups = group_alike(embedding_MD, at_least=at_least)
        return [_kind(pictures, probability_M, members) for members in groups]

    return MissingKinds(group(missed), group(called))


def typical_similarity(positive_RD: NDArray[np.float32]) -> float:
    """What 95 % of the positives reach as their mean similarity to the five nearest others.

    1 with fewer than two positives: then nothing is alike.
    """
    positive_RD = positive_RD[:_MOST_POSITIVES]
    if len(positive_RD) < 2:
        return 1.0
    cosine_RR = positive_RD @ positive_RD.T
    np.fill_diagonal(cosine_RR, -1)
    k = min(_NUM_NEAREST, len(positive_RD) - 1)
    nearest_Rk = np.partition(cosine_RR, -k, axis=1)[:, -k:]
    return float(np.quantile(nearest_Rk.mean(axis=1), 0.05))


def group_alike(embedding_MD: NDArray[np.float32], *, at_least: float) -> list[list[int]]:
    """Groups of pictures whose mean similarity is `at_least`, the largest first.

    The first of a group is the one most like the others. Average linkage; the distance is 1 minus
    the cosine.
    """
    if len(embedding_MD) < _LEAST:
        return []
    tree = linkage(embedding_MD.astype(np.float64), method="average", metric="cosine")
    group_M = fcluster(tree, t=1 - at_least, criterion="distance")
    groups = [np.flatnonzero(group_M == each) for each in np.unique(group_M)]
    ordered = []
    for members in groups:
        alike = embedding_MD[members] @ embedding_MD[members].mean(axis=0)
        ordered.append(members[np.argsort(-alike, kind="stable")].tolist())
    ordered.sort(key=lambda members: (-len(members), min(members)))
    return [members for members in ordered if len(members) >= _LEAST][:_MOST_GROUPS]


def _take_first(rows: pa.Table, logit_column: str, sign: int) -> pa.Table:
    """The lowest logits, or with sign -1 the highest; ties in the order of the rows."""
    order = np.argsort(sign * rows[logit_column].to_numpy(), kind="stable")
    return rows.take(pa.array(order[:_MOST], pa.int64()))


def _unlabelled(embedder: RunEmbedder, rows: pa.Table) -> pa.Table:
    """Those whose source does not say that they do not show the target."""
    unknown: set[str] = set()
    wanted = set(rows["shard"].to_pylist())
    for shard in embedder.shards:
        if shard.path in wanted:
            states = Dataset(embedder.dataset).read_sidecar(shard, ("key", "label_state"))
            is_unknown = pc.equal(states["label_state"], "unknown")
            unknown |= set(states.filter(is_unknown)["key"].to_pylist())
    return rows.filter(pc.is_in(rows["key"], pa.array(sorted(unknown), pa.string())))


def _kind(
    pictures: Sequence[Mapping[str, Any]],
    probability_M: NDArray[np.float64],
    members: Sequence[int],
) -> Kind:
    return Kind(
        pictures=[pictures[member] for member in members],
        probability=float(np.median(probability_M[members])),
    )
