"""`PYTHONPATH=tests/bench python -m study.results PHOTOS --run RUN --out DIR`: the results table.

A finished run of configs/photos.yaml on its own test split, and the same head, trained again by
each seed, on photographs of other origins than those it was trained on: DIR/results.md.
Shapes: S seeds, C columns.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import ConfigError
from study.embedded import embed_photos
from study.heads import ARMS, COLUMNS, make_world, measure_all
from study.photos import find_photos
from train.report.wording import format_interval, format_percent

_ARM = "as the trainer does"
_WORLDS = {
    "A": "trained on look-alikes, clothes, things and skies; tested on ImageNet",
    "B": "trained on ImageNet; tested on look-alikes, clothes, things and skies",
}
_NAMES = {
    "near@95": "FPR at TPR 95 %, look-alikes",
    "near@98": "FPR at TPR 98 %, look-alikes",
    "far@95": "FPR at TPR 95 %, all else",
    "far@98": "FPR at TPR 98 %, all else",
    "TPR": "TPR at the threshold (alpha 1 %)",
}
app = typer.Typer(add_completion=False)


@app.command()
def main(
    photos: Annotated[str, typer.Argument(help="Folder with cats/, near/, random/, ...")],
    run: Annotated[Path, typer.Option(help="A finished run of configs/photos.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for all that it makes.")] = Path("study"),
    seeds: Annotated[int, typer.Option(help="Of heads tested on other origins.")] = 10,
) -> None:
    """Writes DIR/results.md and prints it."""
    embedded = embed_photos(find_photos(photos), out / "embeddings.npz")
    lines = [*_table_of_run(json.loads((run / "metrics.json").read_text())), ""]
    for name, what in _WORLDS.items():
        worlds = [make_world(embedded, None, name, seed) for seed in range(seeds)]
        sizes = {part: len(getattr(worlds[0], part)) for part in ("cats", "near", "far")}
        if not all(sizes.values()):
            raise ConfigError(
                f"{photos}: no picture is left to test on ({sizes}). Other origins need more than "
                "300 pictures in cats/, and near/, random/ and imagenet_sample/WNID/ with "
                "carnivores and others"
            )
        lines += [*_table_of_seeds(what, sizes, measure_all(worlds, ARMS[_ARM])), ""]
    text = "\n".join(lines)
    storage.write_atomic(str(out / "results.md"), text.encode())
    print(text)


def _table_of_run(metrics: dict[str, Any]) -> Iterator[str]:
    (of_target,) = metrics["target"].values()
    yield "| own test split, one run | value [95 % interval] | n |"
    yield "|---|---|---|"
    yield _row(f"TPR at the threshold (alpha {of_target['alpha']:.2g})", of_target["tpr"])
    for tpr in (95, 99):
        for stratum, rate in of_target[f"fpr_at_tpr{tpr}"].items():
            yield _row(f"FPR at TPR {tpr} %, {stratum}", rate)


def _row(name: str, rate: dict[str, Any]) -> str:
    value = f"{format_percent(rate['value'])} [{format_interval(rate)}]"
    return f"| {name} | {value} | {rate['n']:,} |"


def _table_of_seeds(what: str, sizes: dict[str, int], row_SC: NDArray[np.float64]) -> Iterator[str]:
    yield f"| {what} | median [least, most] of {len(row_SC)} seeds, in % | n |"
    yield "|---|---|---|"
    for column, name in _NAMES.items():
        values_S = row_SC[:, COLUMNS.index(column)]
        numbers = (np.median(values_S), values_S.min(), values_S.max())
        value = "{:.2f} [{:.2f}, {:.2f}]".format(*numbers)
        yield f"| {name} | {value} | {sizes.get(column.partition('@')[0], sizes['cats']):,} |"


if __name__ == "__main__":
    app()
