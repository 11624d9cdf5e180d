"""The report's figures as inline SVG, in the colours of the page around them.

Drawn with Figure objects, never pyplot, which would keep state between calls.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from train.metrics.ranking import Bools, Floats, Reliability, weights_at_prior

# A colour used nowhere else, replaced by CSS currentColor: light on dark pages, dark on light ones.
_INK = "#010203"
_ACCENT = "#3b82f6"
_COLOURS = ("#3b82f6", "#e8590c", "#2f9e44", "#9c36b5", "#c2a000", "#e64980", "#0c8599", "#868e96")
_MAX_HISTOGRAMS = len(_COLOURS)
_MAX_RIDGES = 14
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "infineg",  # the same ids in every run
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "legend.frameon": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw_roc(
    curves: Mapping[str, tuple[Bools, Floats, Floats]], *, operating_point: tuple[float, float]
) -> Markup:
    """Name -> (is_positive_N, logits_N, weights_N); operating_point: (FPR, TPR) at the threshold.

    The FPR axis is logarithmic: for rare targets only rates below 1 % matter.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_figure("False positive rate (log)", "True positive rate")
        lowest = 1 / max(len(logits) for _, logits, _ in curves.values())
        for (name, (is_positive, logits, weights)), colour in zip(
            curves.items(), _COLOURS, strict=False
        ):
            fpr, tpr, _ = roc_curve(is_positive, logits, sample_weight=weights)
            axes.plot(
                np.maximum(fpr, lowest / 2), tpr, color=colour, label=name, drawstyle="steps-post"
            )
        fpr_here, tpr_here = operating_point
        axes.plot(max(fpr_here, lowest / 2), tpr_here, "o", color=_INK, label="threshold")
        axes.set_xscale("log")
        axes.set_xlim(lowest / 2, 1)
        axes.set_ylim(0, 1.02)
        axes.legend(loc="lower right")
        return _svg(figure)


def draw_rates(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], *, labels: Sequence[str], goal: float
) -> Markup:
    """Name -> one rate per label, as in metrics.json: dots and whiskers on a logarithmic axis.

    A rate of zero has a whisker from the left edge to a triangle at its upper end.
    """
    rates = [rate for row in rows.values() for rate in row if rate["n"]]
    ends = [rate[end] for rate in rates for end in ("low", "value", "high")]
    edge = 0.5 * min([goal, *(end for end in ends if end > 1e-7)])
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_figure("False positive rate (log)", "", height=0.9 + 0.36 * len(rows))
        for index, row in enumerate(rows.values()):
            for series, (rate, colour) in enumerate(zip(row, _COLOURS, strict=False)):
                y = index + 0.28 * (series - (len(row) - 1) / 2)
                label = labels[series] if index == 0 else None
                _draw_whisker(axes, rate, y=y, edge=edge, colour=colour, label=label)
        axes.axvline(goal, color=_INK, linewidth=1, linestyle="--", alpha=0.6)
        axes.set_xscale("log")
        axes.set_xlim(edge, 1)
        names = [f"{name} ({row[0]['n']:,})" for name, row in rows.items()]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", ncols=len(labels), fontsize=8)
        return _svg(figure)


def _draw_whisker(
    axes: Axes, rate: Mapping[str, Any], *, y: float, edge: float, colour: str, label: str | None
) -> None:
    if not rate["n"]:
        return
    low, high = max(rate["low"], edge), rate["high"]
    axes.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    if rate["value"] > 0:
        axes.plot(rate["value"], y, "o", color=colour, markersize=5, label=label)
    else:
        axes.plot(high, y, "<", color=colour, markersize=5, fillstyle="none", label=label)


def draw_precision_recall(
    is_positive_N: Bools, logits_N: Floats, weights_N: Floats, *, deploy_prior: float
) -> Markup:
    """Two curves, since precision depends on how rare the target is: as tested and as deployed."""
    deploy_weights_N = weights_at_prior(is_positive_N, weights_N, prior=deploy_prior)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_figure("Recall (TPR)", "Precision")
        for weights, colour, name in (
            (weights_N, _ACCENT, "test mix"),
            (deploy_weights_N, _COLOURS[1], f"1 in {1 / deploy_prior:,.0f}"),
        ):
            precision, recall, _ = precision_recall_curve(
                is_positive_N, logits_N, sample_weight=weights
            )
            axes.plot(recall, precision, color=colour, label=name, drawstyle="steps-post")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.legend()
        return _svg(figure)


def draw_reliability(curve: Reliability, low_M: Floats, high_M: Floats) -> Markup:
    """Observed share of positives over the predicted probability, with the interval of each bin.

    The area of a marker is proportional to the mass of its bin.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_figure("Predicted probability", "Observed share of positives")
        axes.plot([0, 1], [0, 1], color=_INK, alpha=0.4, linewidth=1, linestyle="--")
        filled = curve.mass_M > 0
        predicted, observed = curve.predicted_M[filled], curve.observed_M[filled]
        axes.vlines(predicted, low_M[filled], high_M[filled], color=_ACCENT, linewidth=1.6)
        axes.scatter(predicted, observed, s=16 + 200 * curve.mass_M[filled], color=_ACCENT)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        return _svg(figure)


def draw_ridges(values: Mapping[str, Floats], *, label: str) -> Markup:
    """One histogram per row on shared bins, the largest median on top; each fills its row.

    Beyond the largest, the rest are one row.
    """
    with matplotlib.rc_context(_STYLE):
        shown = sorted(
            _largest(values, _MAX_RIDGES).items(), key=lambda pair: -float(np.median(pair[1]))
        )
        figure, axes = _new_figure(label, "", height=0.9 + 0.36 * len(shown))
        edges = np.histogram_bin_edges(np.concatenate([members for _, members in shown]), bins=50)
        for row, (_, members) in enumerate(shown):
            counts, _ = np.histogram(members, edges)
            heights = row - 0.85 * counts / counts.max()
            axes.stairs(heights, edges, baseline=row, color=_ACCENT, fill=True, alpha=0.35)
            axes.stairs(heights, edges, baseline=row, color=_ACCENT, linewidth=1)
        axes.set_yticks(range(len(shown)), [f"{name} ({len(each):,})" for name, each in shown])
        axes.set_ylim(len(shown) - 0.9, -1)
        axes.tick_params(axis="y", length=0)
        return _svg(figure)


def draw_histograms(
    values: Mapping[str, Floats], *, label: str, threshold: float | None = None
) -> Markup:
    """Densities on shared bins, one step line per name; beyond the largest, the rest as one."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_figure(label, "Density")
        shown = _largest(values, _MAX_HISTOGRAMS)
        edges = np.histogram_bin_edges(np.concatenate(list(shown.values())), bins=30)
        for (name, members), colour in zip(shown.items(), _COLOURS, strict=False):
            density, _ = np.histogram(members, edges, density=True)
            axes.stairs(density, edges, color=colour, label=f"{name} ({len(members):,})")
        if threshold is not None:
            axes.axvline(threshold, color=_INK, linewidth=1, linestyle="--", label="threshold")
        axes.legend(fontsize=8)
        return _svg(figure)


def _largest(values: Mapping[str, Floats], num: int) -> dict[str, Floats]:
    ordered = sorted(values.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    if len(ordered) <= num:
        return dict(ordered)
    rest = ordered[num - 1 :]
    others = {f"{len(rest)} others": np.concatenate([members for _, members in rest])}
    return dict(ordered[: num - 1]) | others


def _new_figure(x_label: str, y_label: str, *, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True)
    return figure, axes


def _svg(figure: Figure) -> Markup:
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    # From <svg on: the XML prologue has no place inside HTML. Safe: matplotlib escapes its texts.
    markup = text.getvalue()
    return Markup(markup[markup.index("<svg") :].replace(_INK, "currentColor"))
