"""The hardest test samples as pictures, each with the most similar training images."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.special import expit

from train.metrics.predictions import TargetPredictions
from train.metrics.probability import calibrated_logits
from train.model.info import TargetCalibration
from train.report.neighbours import Neighbour
from train.report.wording import format_percent

_NUM_PICTURES = 24  # of each kind: two screens, about 150 kB, and as much again of neighbours
PICTURE_SIDE = 200  # pixels, longer side
_NEIGHBOUR_SIDE = 112

# The location of a row's image -> an upright RGB JPEG.
ReadImage = Callable[[Mapping[str, Any]], bytes]


def worst_rows(test: TargetPredictions, *, of_positives: bool) -> list[int]:
    """The negatives with the highest logits, or the positives with the lowest, worst first."""
    members = np.flatnonzero(test.is_positive_N == of_positives)
    badness = -test.logits_N if of_positives else test.logits_N
    worst: list[int] = members[np.argsort(-badness[members], kind="stable")].tolist()
    return worst[:_NUM_PICTURES]


def places_of(test: TargetPredictions, rows: Sequence[int]) -> list[tuple[str, str]]:
    """(key, path of the shard) of each."""
    chosen = _take(test, rows)
    return list(zip(chosen["key"].to_pylist(), chosen["shard"].to_pylist(), strict=True))


def show_pictures(
    test: TargetPredictions,
    calibration: TargetCalibration,
    rows: Sequence[int],
    *,
    neighbours: Mapping[str, Sequence[Neighbour]],
    read_image: ReadImage,
) -> list[dict[str, Any]]:
    """The template's variables for each row; `neighbours` by key."""
    probabilities_N = expit(calibrated_logits(calibration, test.logits_N))
    return [
        {
            **about,
            "uri": _thumbnail(read_image(about), PICTURE_SIDE),
            "logit": float(test.logits_N[row]),
            "probability": format_percent(float(probabilities_N[row])),
            "is_error": bool(
                (test.logits_N[row] >= calibration.threshold) != test.is_positive_N[row]
            ),
            "neighbours": [
                {**vars(near), "uri": _thumbnail(read_image(vars(near)), _NEIGHBOUR_SIDE)}
                for near in neighbours.get(about["key"], ())
            ],
        }
        for row, about in zip(rows, _take(test, rows).to_pylist(), strict=True)
    ]


def _take(test: TargetPredictions, rows: Sequence[int]) -> pa.Table:
    return test.rows.take(pa.array(rows, pa.int64()))


def _thumbnail(image: bytes, side: int) -> str:
    """A data: URI of an image of at most `side` by `side` pixels."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(image)) as picture:
        picture.draft("RGB", (side, side))
        picture.thumbnail((side, side))
        picture.convert("RGB").save(small, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode()
