"""Metrics as a table for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from train.metrics.comparison import Comparison
from train.report.summary import telling_tpr


def metrics_table(metrics: dict[str, Any], *, title: str = "test split") -> Table:
    """Rates at the threshold that predict uses, and at TPR 95 %: a row per target and stratum."""
    table = Table(title=title, caption="with 95 % intervals")
    columns = ("target", "stratum", "called the target", "n", "FPR at TPR 95 %")
    for column in columns:
        table.add_column(column, justify="left" if column in ("target", "stratum") else "right")
    for target, of_target in metrics["target"].items():
        tpr = telling_tpr(of_target)
        name = "its pictures" + ("" if tpr is of_target["tpr"] else ", cross-fitted")
        table.add_row(target, name, _share(tpr), f"{tpr['n']:,}", "")
        for stratum, rate in of_target["fpr"].items():
            if not rate["n"] and stratum != "all":
                continue
            at_tpr = of_target["fpr_at_tpr95"][stratum]
            table.add_row(target, stratum, _share(rate), f"{rate['n']:,}", _share(at_tpr))
    return table


def comparison_table(first: str, comparison: Comparison) -> Table:
    """A row per rate and stratum: both runs, and their difference in points."""
    title = Text(f"{comparison.target}: {comparison.name} against {first}")
    table = Table(
        title=title,
        caption=f"paired, 95 % intervals; {len(comparison.changed):,} pictures changed sides",
    )
    for column in ("rate", "stratum", "first", "second", "difference", "n"):
        table.add_column(column, justify="left" if column in ("rate", "stratum") else "right")
    for rate, by_stratum in comparison.rates.items():
        for stratum, each in by_stratum.items():
            points = (100 * share for share in (each.value, each.low, each.high))
            shown = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*points)
            shares = (f"{each.first:.2%}", f"{each.second:.2%}")
            table.add_row(rate, stratum, *shares, shown, f"{each.n:,}")
    return table


def _share(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "-"
    return f"{rate['value']:.2%} [{rate['low']:.2%}, {rate['high']:.2%}]"
