"""The figure of a study: false positives over the number of positives, one line per arm."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.pooling import Case, Groups, Result, group_runs, pool_rate

# Okabe and Ito's colours, distinct for the colour-blind; markers differ, too.
_LOOKS = (("#0072B2", "o"), ("#E69F00", "s"), ("#D55E00", "D"), ("#009E73", "^"), ("#CC79A7", "v"))
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
_ROWS = ((("near",), "look-alikes"), (("far", "imagenet"), "far and ImageNet"))
_FLOOR = 5e-4  # where no alarm was raised, on an axis that has no zero
_STEP = 0.09  # between arms that lie side by side; numbers of positives are 1 apart


@dataclass(frozen=True)
class _Line:
    """The line of one arm in a panel."""

    arm: str
    is_baseline: bool
    look: tuple[str, str]  # colour and marker, the same in every panel
    is_corrected: bool
    points: tuple[tuple[int, Sequence[Result]], ...]  # number of positives, runs


def draw_study(out: Path, results: Sequence[Result]) -> None:
    """study.svg and study.png, of the stream with rare look-alikes.

    A column a budget, and one for what is finetuned; a row for look-alikes and one for the rest.
    """
    groups = {
        case: runs for case, runs in group_runs(results).items() if case.near_share is not None
    }
    modes = {case: runs[0]["mode"] for case, runs in groups.items()}
    kinds = dict.fromkeys(_negatives(r) for r in results if not r["baseline"])
    looks = {kind: _LOOKS[n % len(_LOOKS)] for n, kind in enumerate(kinds)}
    budgets = sorted({case.budget for case in groups if case.budget})
    finetuned = sorted({case.budget for case in groups if modes[case] == "finetune"})
    columns = [("head", budget) for budget in budgets]
    columns += [("finetune", budget) for budget in finetuned]
    with matplotlib.rc_context(_STYLE):
        widths = [3.6 if mode == "head" else 2.0 for mode, _ in columns]
        figure = Figure(figsize=(max(sum(widths), 6.5), 6.2), layout="constrained")
        grid = figure.subplots(
            len(_ROWS), len(columns), squeeze=False, sharey=True, sharex="col",
            gridspec_kw={"width_ratios": widths},
        )  # fmt: skip
        for axes_row, (strata, title) in zip(grid, _ROWS, strict=True):
            for axes, (mode, budget) in zip(axes_row, columns, strict=True):
                chosen = {c: runs for c, runs in groups.items() if modes[c] == mode}
                _draw_panel(axes, _lines(chosen, budget, looks), strata)
            axes_row[0].set_ylabel(f"{title}\nfalse positives at TPR 95 %")
        for axes, (mode, budget) in zip(grid[0], columns, strict=True):
            axes.set_title(f"{'frozen' if mode == 'head' else 'finetuned'}, {budget} negatives")
        for axes in grid[-1]:
            axes.set_xlabel("positives")
        arms: dict[str, Any] = {}
        for axes in grid[0]:
            handles, labels = axes.get_legend_handles_labels()
            arms |= dict(zip(labels, handles, strict=True))
        figure.legend(
            list(arms.values()), list(arms), loc="outside lower center", ncols=2, fontsize=8
        )
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out / "study.svg", metadata=nothing, facecolor="white")
        figure.savefig(out / "study.png", dpi=200, facecolor="white")


def _lines(groups: Groups, budget: int, looks: dict[str, tuple[str, str]]) -> list[_Line]:
    """Arms of a budget and those without any; first what is trained here."""
    by_arm: dict[str, list[tuple[Case, Sequence[Result]]]] = {}
    for case, runs in groups.items():
        if case.budget in (0, budget):
            by_arm.setdefault(case.arm, []).append((case, runs))
    lines = []
    for arm, cases in by_arm.items():
        first = cases[0][1][0]
        lines.append(
            _Line(
                arm=arm,
                is_baseline=bool(first["baseline"]),
                look=looks.get(_negatives(first), _LOOKS[0]),
                is_corrected=first["correction"] == "weight",
                points=tuple(sorted((case.num_positives, runs) for case, runs in cases)),
            )
        )
    # By name, so that places and dashes are the same in every panel; uniform ones are first.
    return sorted(lines, key=lambda line: (line.is_baseline, "uniform" not in line.arm, line.arm))


def _negatives(result: Result) -> str:
    return f"{result['negatives']} {result['beta']}"


def _draw_panel(axes: Axes, lines: Sequence[_Line], strata: Sequence[str]) -> None:
    numbers = sorted({number for line in lines for number, _ in line.points})
    trained = [line for line in lines if not line.is_baseline]
    for position, line in enumerate(trained):
        look: dict[str, Any] = dict(zip(("color", "marker"), line.look, strict=True))
        if line.is_corrected:
            look |= {"linestyle": "--", "markerfacecolor": "white"}
        _draw_line(axes, line, strata, numbers, _STEP * (position - (len(trained) - 1) / 2), look)
    for position, line in enumerate(lines[len(trained) :]):
        look = {
            "color": _BASELINE_COLOUR,
            "linestyle": _BASELINE_LINES[position % len(_BASELINE_LINES)],
        }
        _draw_line(axes, line, strata, numbers, None, look)
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR * 0.8, 0.2)
    axes.set_xlim(-0.5, len(numbers) - 0.5)
    axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    axes.set_yticks([_FLOOR, 1e-3, 1e-2, 1e-1], ["0", "0.1 %", "1 %", "10 %"])
    axes.minorticks_off()
    axes.grid(visible=True, axis="y")


def _draw_line(
    axes: Axes,
    line: _Line,
    strata: Sequence[str],
    numbers: Sequence[int],
    shift: float | None,
    look: dict[str, Any],
) -> None:
    """Rates with their intervals; without `shift` only the rates."""
    pooled = [(numbers.index(number), pool_rate(runs, *strata)) for number, runs in line.points]
    known = [(x, rate) for x, rate in pooled if rate is not None]
    x = [place + (shift or 0) for place, _ in known]
    y = [max(rate.value, _FLOOR) for _, rate in known]
    if shift is None:
        axes.plot(x, y, linewidth=1, label=line.arm, zorder=1, **look)
        return
    below = [max(value - rate.low, 0) for value, (_, rate) in zip(y, known, strict=True)]
    above = [max(rate.high - value, 0) for value, (_, rate) in zip(y, known, strict=True)]
    axes.errorbar(
        x, y, yerr=[below, above], label=line.arm, markersize=4, linewidth=0.9, elinewidth=1,
        capsize=2, **look,
    )  # fmt: skip
