"""Writes gallery.html and croissant.json."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.curate.view.card import data_card
from pipeline.curate.view.gather import (
    BIN_EDGES,
    DatasetView,
    Histogram,
    Row,
    SourceView,
    gather,
    ordered_strata,
)
from pipeline.dataset.metadata import Generation
from pipeline.dataset.schema import SPLITS, RejectReason
from pipeline.errors import ConfigError
from pipeline.page.pictures import as_uri, small_picture
from pipeline.page.templates import make_environment

_PICTURE_SIDE = 160  # pixels, longer side


def write_view(root: str, folder: Path, *, num_pictures: int) -> Path:
    """Writes the page and the card of a data set into a folder; returns the page's path.

    Raises ConfigError if there is no data set, or if the folder lies in it or is a URI.
    """
    if ":/" in str(folder):  # as much of "://" as a Path keeps
        raise ConfigError(
            f"--out {folder}: a page is written to a local folder; copy it from there"
        )
    local = storage.local_path(root)
    if local is not None and folder.resolve().is_relative_to(local.resolve()):
        raise ConfigError(f"--out {folder}: inside the data set; choose another folder")
    view = gather(root, num_pictures=num_pictures)
    page = _render(view)
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_atomic(str(folder / "gallery.html"), page.encode(), replaces=True)
    card = json.dumps(data_card(view), indent=1) + "\n"
    storage.write_atomic(str(folder / "croissant.json"), card.encode(), replaces=True)
    return folder / "gallery.html"


def _render(view: DatasetView) -> str:
    environment = make_environment("pipeline.curate.view")
    rejected = view.generation.counts.rejected
    return environment.get_template("gallery.html.j2").render(
        root=storage.redact(view.root),
        info=view.info,
        generation=view.generation,
        splits=SPLITS,
        history=[_in_short(generation) for generation in view.history],
        num_bytes=sum(shard.size_bytes for shard in view.generation.shards),
        num_taken_down=rejected.get(RejectReason.TAKEN_DOWN, 0),
        sources=[_show_source(view, source) for source in view.sources.values()],
        hardest=_show_rows(view, view.hardest),
        suspects=_show_rows(view, view.suspects),
        groups=[(size, _show_rows(view, rows)) for size, rows in view.groups],
    )


def _in_short(generation: Generation) -> dict[str, Any]:
    return {
        "number": generation.number,
        "made_by": generation.made_by,
        "splits": list(generation.samples_by_split().values()),
        "quarantined": generation.num_quarantined,
    }


def _show_source(view: DatasetView, source: SourceView) -> dict[str, Any]:
    return {
        "record": source.record,
        "num_bytes": source.num_bytes,
        "licenses": dict(source.licenses.most_common()),
        "strata": [
            (name, source.strata[name], _show_rows(view, source.pictures[name]))
            for name in ordered_strata(source.strata)
        ],
        "bars": _bars(source.histogram),
        "rejects": [
            (reason, source.record.counts.rejected.get(reason, len(uris)), uris)
            for reason, uris in sorted(source.rejects.items())
        ],
    }


def _show_rows(view: DatasetView, rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [
        {**row, "picture": as_uri(small_picture(view.root, row, _PICTURE_SIDE))} for row in rows
    ]


def _bars(histogram: Histogram) -> list[dict[str, Any]]:
    """Bins from the first to the last with candidates; heights are shares of the highest."""
    filled = np.flatnonzero(histogram.candidates_M)
    if not len(filled):
        return []
    highest = histogram.candidates_M.max()
    return [
        {
            "low": float(BIN_EDGES[at]),
            "high": float(BIN_EDGES[at + 1]),
            "candidates": int(histogram.candidates_M[at]),
            "selected": int(histogram.selected_M[at]),
            "height": float(histogram.candidates_M[at] / highest),
            "chosen": float(histogram.selected_M[at] / highest),
            "probability": float(histogram.probability_M[at] / histogram.candidates_M[at])
            if histogram.candidates_M[at]
            else None,
        }
        for at in range(filled[0], filled[-1] + 1)
    ]
