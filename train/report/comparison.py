"""compare.html: how runs differ, with the pictures that changed sides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.page.pictures import as_uri, thumbnail
from train.metrics.comparison import Comparison, Difference
from train.report.page import render
from train.report.pictures import PICTURE_SIDE, ReadImage
from train.report.wording import count

_NUM_PICTURES = 24  # of each side


@dataclass(frozen=True)
class _Row:
    stratum: str
    d: Difference
    tone: str  # of the difference: better, worse, or "" where none is shown


def render_comparisons(
    first: str, comparisons: Sequence[Comparison], *, num_common: int, read_image: ReadImage | None
) -> str:
    """HTML. first: the name of the run that the others are compared to; read_image: of the rows of
    `changed`, None if the data set is away.
    """
    names = list(dict.fromkeys(each.name for each in comparisons))
    return render(
        "compare.html.j2",
        title=f"{first} and {', '.join(names)}, compared",
        first=first,
        num_common=num_common,
        comparisons=[
            {
                "target": comparison.target,
                "name": comparison.name,
                "verdict": describe(comparison),
                "tables": {
                    rate: [_Row(name, each, _tone(rate, each)) for name, each in members.items()]
                    for rate, members in comparison.rates.items()
                },
                "sides": list(_sides(first, comparison, read_image)),
            }
            for comparison in comparisons
        ],
    )


def describe(comparison: Comparison) -> str:
    """What is shown, in a sentence."""
    shown = [
        f"{rate}{f', {stratum}' if stratum else ''}: {_tone(rate, difference)}"
        for rate, by_stratum in comparison.rates.items()
        for stratum, difference in by_stratum.items()
        if _tone(rate, difference)
    ]
    changed = count(len(comparison.changed), "picture")
    if not shown:
        return f"No difference is shown. {changed} changed sides."
    return f"Shown: {'; '.join(shown)}. {changed} changed sides."


def _tone(rate: str, difference: Difference) -> str:
    if difference.low <= 0 <= difference.high:
        return ""
    return "better" if (difference.value > 0) == rate.startswith("TPR") else "worse"


def _sides(
    first: str, comparison: Comparison, read_image: ReadImage | None
) -> Iterator[dict[str, Any]]:
    target, name = comparison.target, comparison.name
    sides = {
        f"{name} finds, {first} misses": (True, True),
        f"{name} misses, {first} finds": (True, False),
        f"Mistaken for {target} by {name} only": (False, True),
        f"Mistaken for {target} by {first} only": (False, False),
    }
    for title, (is_target, is_called_now) in sides.items():
        rows = [
            row
            for row in comparison.changed
            if (row["label"] == target) == is_target and (row["second"] >= 0) == is_called_now
        ]
        pictures = []
        if read_image is not None:
            pictures = [
                {
                    **row,
                    "origin": storage.redact(row["uri"] or ""),
                    "uri": as_uri(thumbnail(read_image(row), PICTURE_SIDE)),
                }
                for row in rows[:_NUM_PICTURES]
            ]
        yield {"title": title, "count": len(rows), "pictures": pictures}
