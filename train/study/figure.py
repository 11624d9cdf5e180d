"""The figure of a study: false positives over the number of positives, a line an arm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.study.pooling import Groups, Result, group_runs, pool_rate

# Told apart without colour too, by their markers (Okabe and Ito's colours).
_LOOKS = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#E69F00", "D"), ("#009E73", "^"), ("#CC79A7", "v"),
    ("#56B4E9", "P"), ("#000000", "X"),
)  # fmt: skip
_BASELINE_COLOUR, _BASELINE_LINES = "#8a8a8a", ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "infineg",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
_PANELS = (("near", "near: look-alikes"), ("far", "far: things and scenes"),
           ("imagenet", "ImageNet, one a class"))  # fmt: skip
_FLOOR = 5e-4  # where no alarm was raised, on an axis that has no zero


def draw_study(out: Path, results: Sequence[Result]) -> None:
    """study.svg and study.png, of the stream with rare look-alikes: a row a budget."""
    shown = [result for result in results if result["near_share"] is not None]
    groups = group_runs(shown)
    budgets = sorted({case.budget for case in groups if case.budget})
    present = {stratum for result in shown for stratum in result["tested"]}
    panels = [panel for panel in _PANELS if panel[0] in present]
    with matplotlib.rc_context(_STYLE):
        size = (3.0 * len(panels), 2.6 * len(budgets) + 1.1)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(budgets), len(panels), squeeze=False, sharex=True, sharey=True)
        for budget, row in zip(budgets, grid, strict=True):
            for (stratum, title), axes in zip(panels, row, strict=True):
                _draw_panel(axes, groups, stratum, budget)
                if budget == budgets[0]:
                    axes.set_title(title)
            row[0].set_ylabel(f"{budget} negatives\nFPR at TPR 95 %")
        for axes in grid[-1]:
            axes.set_xlabel("positives")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out / "study.svg", metadata=nothing, facecolor="white")
        figure.savefig(out / "study.png", dpi=200, facecolor="white")


def _draw_panel(axes: Axes, groups: Groups, stratum: str, budget: int) -> None:
    arms: dict[str, list[tuple[int, Sequence[Result]]]] = {}
    for case, runs in sorted(groups.items(), key=lambda group: group[0].num_positives):
        if case.budget in (0, budget):
            arms.setdefault(case.arm, []).append((case.num_positives, runs))
    numbers = sorted({number for points in arms.values() for number, _ in points})
    trained = [arm for arm, points in arms.items() if not points[0][1][0]["baseline"]]
    baselines = [arm for arm in arms if arm not in trained]
    for position, arm in enumerate(trained):
        colour, marker = _LOOKS[position % len(_LOOKS)]
        # Side by side, for their intervals to be seen.
        shift = 1 + 0.05 * (position - (len(trained) - 1) / 2)
        _draw_line(axes, arms[arm], stratum, shift, label=arm, color=colour, marker=marker)
    for position, arm in enumerate(baselines):
        line = _BASELINE_LINES[position % len(_BASELINE_LINES)]
        _draw_line(axes, arms[arm], stratum, None, label=arm, color=_BASELINE_COLOUR,
                   linestyle=line)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR * 0.8, 1)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set_yticks([_FLOOR, 1e-3, 1e-2, 1e-1, 1], ["0", "0.1 %", "1 %", "10 %", "100 %"])
    axes.minorticks_off()
    axes.grid(visible=True)


def _draw_line(
    axes: Axes,
    points: Sequence[tuple[int, Sequence[Result]]],
    stratum: str,
    shift: float | None,
    **look: Any,
) -> None:
    """Rates with their intervals; without `shift` the rates alone."""
    pooled = [(number, pool_rate(runs, stratum)) for number, runs in points]
    known = [(number, rate) for number, rate in pooled if rate is not None]
    x = [number * (shift or 1) for number, _ in known]
    y = [max(rate.value, _FLOOR) for _, rate in known]
    if shift is None:
        axes.plot(x, y, linewidth=1, **look)
        return
    below = [max(value - rate.low, 0) for value, (_, rate) in zip(y, known, strict=True)]
    above = [max(rate.high - value, 0) for value, (_, rate) in zip(y, known, strict=True)]
    axes.errorbar(
        x, y, yerr=[below, above], markersize=4, linewidth=1.3, elinewidth=0.8, capsize=2, **look
    )
