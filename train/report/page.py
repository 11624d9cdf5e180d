"""Renders the report from metrics, predictions and figures."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline import storage
from pipeline.dataset.images import Decoded, decode_image
from pipeline.dataset.schema import ImageSettings
from pipeline.errors import InfinegError
from pipeline.page.pictures import read_from_tar
from pipeline.page.templates import make_environment
from train.metrics.predictions import Place, TargetPredictions
from train.model.info import TargetCalibration
from train.model.neighbours import Nearest
from train.report.curves import draw_curves, draw_strata
from train.report.kinds import MissingKinds, show_kinds
from train.report.pictures import (
    PICTURE_SIDE,
    ReadImage,
    places_of,
    show_pictures,
    worst_rows,
)
from train.report.summary import summarise
from train.report.wording import format_figure, format_percent, one_in

# The training pictures most like each of some pictures, for a target; None if not known.
Explain = Callable[[Sequence[Place], str], list[Nearest] | None]


def render_report(
    tests: Sequence[TargetPredictions],
    metrics: Mapping[str, Any],
    calibration: Mapping[str, TargetCalibration],
    *,
    title: str,
    subtitle: str,
    dataset: str | None = None,
    explain: Explain = lambda _places, _target: None,
    missing_kinds: Mapping[str, MissingKinds] = MappingProxyType({}),
    paths: Mapping[str, str] | None = None,
) -> str:
    """HTML for the test split of a data set, or for folders of images.

    metrics: all of metrics.json; calibration and missing_kinds: by target; paths: the files of the
    keys of folders.
    """
    is_folder = dataset is None
    read_image: ReadImage = partial(_read_file, paths or {})
    if dataset is not None:
        read_image = partial(read_from_tar, dataset)
    return render(
        "report.html.j2",
        title=title,
        subtitle=subtitle,
        targets=[
            {
                **_show(test, metrics, calibration, explain, read_image, is_folder=is_folder),
                **_show_kinds(missing_kinds.get(test.target, MissingKinds()), read_image),
            }
            for test in tests
        ],
        sources=metrics["strata"],
        dataset=metrics.get("dataset"),
        is_folder=is_folder,
    )


def render(template: str, **context: Any) -> str:
    """HTML of one of the templates beside this file."""
    environment = make_environment(
        "train.report", percent=format_percent, figure=format_figure, one_in=one_in
    )
    # No line break between a number and its sign.
    return environment.get_template(template).render(**context).replace(" %", "&nbsp;%")


def _read_file(paths: Mapping[str, str], row: Mapping[str, Any]) -> bytes:
    settings = ImageSettings(image_size=PICTURE_SIDE)
    content = storage.read_local(paths[row["key"]], 0, Path(paths[row["key"]]).stat().st_size)
    decoded = decode_image(content, rotation=0, settings=settings)
    if not isinstance(decoded, Decoded):
        raise InfinegError(f"{row['key']}: changed during the evaluation ({decoded})")
    return decoded.image


def _show(
    test: TargetPredictions,
    all_metrics: Mapping[str, Any],
    calibrations: Mapping[str, TargetCalibration],
    explain: Explain,
    read_image: ReadImage,
    *,
    is_folder: bool,
) -> dict[str, Any]:
    metrics, calibration = all_metrics["target"][test.target], calibrations[test.target]

    def worst(of_positives: bool) -> list[dict[str, Any]]:
        rows = worst_rows(test, of_positives=of_positives)
        nearest = explain(places_of(test, rows), test.target)
        return show_pictures(test, calibration, rows, nearest=nearest, read_image=read_image)

    prefix = "fpr_at_tpr"
    return {
        "name": test.target,
        "metrics": metrics,
        "levels": [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)],
        "summary": summarise(test.target, metrics, is_folder=is_folder),
        "strata_figures": draw_strata(test, metrics),
        "figures": draw_curves(test, metrics, calibration),
        "false_positives": worst(of_positives=False),
        "misses": worst(of_positives=True),
    }


def _show_kinds(kinds: MissingKinds, read_image: ReadImage) -> dict[str, Any]:
    return {
        "missed_kinds": show_kinds(kinds.missed, read_image),
        "called_kinds": show_kinds(kinds.called, read_image),
    }
