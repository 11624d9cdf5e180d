"""Metrics as a table for a terminal."""

from typing import Any

from rich.table import Table


def metrics_table(metrics: dict[str, Any], *, title: str = "test split") -> Table:
    """False-positive rates at TPR 95 %, one row per target and stratum."""
    table = Table(title=title, caption="95 % intervals")
    for column in ("target", "stratum", "FPR at TPR 95 %", "low", "high", "n"):
        table.add_column(column, justify="left" if column in ("target", "stratum") else "right")
    for target, of_target in metrics["target"].items():
        for stratum, rate in of_target["fpr_at_tpr95"].items():
            shares = (rate["value"], rate["low"], rate["high"])
            shown = ("-" if share is None else f"{share:.2%}" for share in shares)
            table.add_row(target, stratum, *shown, f"{rate['n']:,}")
    return table
