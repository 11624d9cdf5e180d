"""The hardest test samples as pictures, each with the most similar training images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import expit

from pipeline import storage
from pipeline.page.pictures import as_uri, thumbnail
from train.metrics.predictions import Place, TargetPredictions
from train.metrics.probability import calibrated_logits
from train.model.info import TargetCalibration
from train.model.neighbours import Nearest, Neighbour
from train.report.wording import format_percent

_NUM_PICTURES = 24  # of each kind: two screens, about 150 kB, and as much again of neighbours
PICTURE_SIDE = 200  # pixels, longer side

# The location of a row's image -> an upright RGB JPEG.
ReadImage = Callable[[Mapping[str, Any]], bytes]


def worst_rows(test: TargetPredictions, *, of_positives: bool) -> list[int]:
    """The negatives with the highest logits, or the positives with the lowest, worst first."""
    members = np.flatnonzero(test.is_positive_N == of_positives)
    badness = -test.logits_N if of_positives else test.logits_N
    worst: list[int] = members[np.argsort(-badness[members], kind="stable")].tolist()
    return worst[:_NUM_PICTURES]


def places_of(test: TargetPredictions, rows: Sequence[int]) -> list[Place]:
    chosen = _take(test, rows)
    return list(zip(chosen["key"].to_pylist(), chosen["shard"].to_pylist(), strict=True))


def show_pictures(
    test: TargetPredictions,
    calibration: TargetCalibration,
    rows: Sequence[int],
    *,
    nearest: Sequence[Nearest] | None,
    read_image: ReadImage,
) -> list[dict[str, Any]]:
    """The template's variables for each row; `nearest` of each, if known."""
    probabilities_N = expit(calibrated_logits(calibration, test.logits_N))
    return [
        {
            **about,
            "origin": storage.redact(about["uri"] or ""),
            "uri": as_uri(thumbnail(read_image(about), PICTURE_SIDE)),
            "logit": float(test.logits_N[row]),
            "probability": format_percent(float(probabilities_N[row])),
            "is_error": bool(
                (test.logits_N[row] >= calibration.threshold) != test.is_positive_N[row]
            ),
            "neighbours": [_show(near) for near in _both(nearest[place])] if nearest else [],
        }
        for place, (row, about) in enumerate(zip(rows, _take(test, rows).to_pylist(), strict=True))
    ]


def _both(nearest: Nearest) -> list[Neighbour]:
    return [*nearest.positives, *nearest.negatives]


def _show(near: Neighbour) -> dict[str, Any]:
    return {**vars(near), "uri": as_uri(near.preview)}


def _take(test: TargetPredictions, rows: Sequence[int]) -> pa.Table:
    return test.rows.take(pa.array(rows, pa.int64()))
