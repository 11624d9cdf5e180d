"""`report.html`: what a run can do and where it fails, in one file that opens offline.

Shows numbers that others measured; fits and measures nothing.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from scipy.special import expit

from pipeline import storage
from train.figures import draw_histograms, draw_precision_recall, draw_reliability, draw_roc
from train.metrics import Floats, reliability
from train.model import TargetCalibration
from train.predictions import TargetPredictions
from train.probability import calibrated_logits

_NUM_PICTURES = 24  # of each kind: two screens, about 150 kB
_THUMBNAIL_SIDE = 160  # pixels, longer side


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """One target's test predictions, its block of metrics.json, and its calibration."""

    test: TargetPredictions
    metrics: Mapping[str, Any]
    calibration: TargetCalibration


def render_report(
    targets: Sequence[TargetReport],
    *,
    title: str,
    subtitle: str,
    sources: Mapping[str, Any],
    dataset: str,
    num_bins: int,
) -> str:
    """HTML. `sources` is `strata` of metrics.json; pictures come from the shards of `dataset`."""
    environment = Environment(
        loader=PackageLoader("train"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": format_percent, "figure": _format_figure}
    return environment.get_template("report.html.j2").render(
        title=title,
        subtitle=subtitle,
        sources=sources,
        targets=[
            {
                "name": target.test.target,
                "metrics": target.metrics,
                "levels": [
                    name.removeprefix("fpr_at_tpr")
                    for name in target.metrics
                    if name.startswith("fpr_at_tpr")
                ],
                "notice": _notice(target.metrics),
                "per_million_note": _per_million_note(target.metrics),
                "figures": _figures(target, num_bins),
                "false_positives": _pictures(target, dataset, of_positives=False),
                "misses": _pictures(target, dataset, of_positives=True),
            }
            for target in targets
        ],
    )


def _notice(metrics: Mapping[str, Any]) -> str:
    if metrics["alpha"] <= metrics["alpha_wanted"]:
        return ""
    return (
        f"{metrics['num_val_negatives']:,} val negatives are too few to promise a false positive "
        f"rate of {format_percent(metrics['alpha_wanted'])}: the threshold lies above the largest "
        f"of them, which promises {format_percent(metrics['alpha'])}."
    )


def _per_million_note(metrics: Mapping[str, Any]) -> str:
    interval = metrics["false_positives_per_million_interval"]
    if interval is None:
        return "no negatives"
    return f"{_format_figure(interval[0])} to {_format_figure(interval[1])}"


def _figures(target: TargetReport, num_bins: int) -> list[tuple[str, Markup]]:
    """(caption, SVG); none that needs both classes where one is missing."""
    test = target.test
    samples = (test.is_positive_N, test.logits_N, test.weights_N)
    figures = []
    if test.has_both:
        here = (target.metrics["fpr"]["all"]["value"], target.metrics["tpr"]["value"])
        prior = target.metrics["deploy_prior"]
        figures += [
            ("ROC, by stratum of the negatives", draw_roc(_roc_curves(test), operating_point=here)),
            (
                "Precision and recall, for two mixes",
                draw_precision_recall(*samples, deploy_prior=prior),
            ),
        ]
    if len(test.logits_N):
        mix_logits_N = calibrated_logits(target.calibration, test.logits_N, deployed=False)
        curve = reliability(
            test.is_positive_N, expit(mix_logits_N), test.weights_N, num_bins=num_bins
        )
        classes = {"positives": test.is_positive_N, "negatives": ~test.is_positive_N}
        logits = draw_histograms(
            {name: test.logits_N[members] for name, members in classes.items() if members.any()},
            label="Raw logit",
            threshold=target.metrics["threshold"],
        )
        figures += [("Reliability in the test mix", draw_reliability(curve)), ("Logits", logits)]
    if similarities := _similarities_by_source(test):
        histogram = draw_histograms(similarities, label="Similarity to the reference bank")
        figures.append(("Similarity by source", histogram))
    # Our own SVG, whose texts matplotlib has escaped.
    return [(caption, Markup(svg)) for caption, svg in figures]


def _roc_curves(test: TargetPredictions) -> dict[str, Any]:
    """All negatives together, then each stratum's against the same positives."""
    curves = {"all": np.ones(len(test.logits_N), dtype=bool)}
    for stratum in test.strata:
        curves[stratum] = test.is_positive_N | (test.stratum_N == stratum)
    return {
        name: (test.is_positive_N[chosen], test.logits_N[chosen], test.weights_N[chosen])
        for name, chosen in curves.items()
    }


def _similarities_by_source(test: TargetPredictions) -> dict[str, Floats]:
    known = ~np.isnan(test.similarity_N)
    return {
        source: test.similarity_N[known & (test.source_N == source)]
        for source in sorted(set(test.source_N[known].tolist()))
    }


def _pictures(target: TargetReport, dataset: str, *, of_positives: bool) -> list[dict[str, Any]]:
    """The negatives with the highest logits, or the positives with the lowest, worst first."""
    test = target.test
    members = np.flatnonzero(test.is_positive_N == of_positives)
    badness = -test.logits_N if of_positives else test.logits_N
    worst = members[np.argsort(-badness[members], kind="stable")][:_NUM_PICTURES]
    probabilities_N = expit(calibrated_logits(target.calibration, test.logits_N))
    return [
        {
            **test.rows.select(["key", "source", "stratum"]).slice(index, 1).to_pylist()[0],
            "uri": _thumbnail(dataset, test, index),
            "logit": float(test.logits_N[index]),
            "probability": format_percent(float(probabilities_N[index])),
            "is_error": bool((test.logits_N[index] >= target.metrics["threshold"]) != of_positives),
        }
        for index in worst.tolist()
    ]


def _thumbnail(dataset: str, test: TargetPredictions, index: int) -> str:
    """A data: URI. The one image is read from its tar, not the tar."""
    where = test.rows.slice(index, 1).to_pylist()[0]
    image = storage.read_range(
        storage.join(dataset, where["shard"]), where["tar_offset"], where["tar_size"]
    )
    small = io.BytesIO()
    with Image.open(io.BytesIO(image)) as picture:
        picture.draft("RGB", (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        picture.convert("RGB").save(small, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode()


def format_percent(share: float | None) -> str:
    """Two significant digits of the distance to 0 or 1: 98.3 %, 0.012 %, 99.987 %."""
    if share is None:
        return "n/a"
    distance = 100 * min(share, 1 - share)
    digits = 1 - math.floor(math.log10(distance)) if distance > 1e-9 else 0
    return f"{100 * share:.{max(0, min(digits, 8))}f} %"


def _format_figure(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
