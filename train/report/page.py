"""Renders the report from metrics, predictions and figures."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline import storage
from pipeline.dataset.images import Decoded, decode_image
from pipeline.dataset.metadata import Generation
from pipeline.dataset.schema import ImageSettings
from pipeline.errors import BadShard, InfinegError
from train.metrics.predictions import TargetPredictions
from train.model.info import TargetCalibration
from train.report.curves import draw_curves, draw_strata
from train.report.neighbours import Neighbour, find_neighbours
from train.report.pictures import PICTURE_SIDE, ReadImage, places_of, show_pictures, worst_rows
from train.report.summary import summarise
from train.report.wording import format_figure, format_percent, one_in

_JPEG = b"\xff\xd8"  # how all images of a data set begin


def render_report(
    tests: Sequence[TargetPredictions],
    metrics: Mapping[str, Any],
    calibration: Mapping[str, TargetCalibration],
    *,
    title: str,
    subtitle: str,
    dataset: str | None = None,
    generation: Generation | None = None,
    paths: Mapping[str, str] | None = None,
) -> str:
    """HTML for the test split of a data set, or for folders of images.

    metrics: all of metrics.json; calibration: by target; paths: the files of the keys of folders.
    """
    read_image: ReadImage = partial(_read_file, paths or {})
    neighbours: dict[str, list[Neighbour]] = {}
    if dataset is not None and generation is not None:
        read_image = partial(_read_from_tar, dataset)
        places = [
            place
            for test in tests
            for of_positives in (False, True)
            for place in places_of(test, worst_rows(test, of_positives=of_positives))
        ]
        places = list(dict.fromkeys(places))
        found = find_neighbours(dataset, generation, places)
        neighbours = {key: near for (key, _), near in zip(places, found, strict=True)}
    is_folder = dataset is None
    environment = Environment(
        loader=PackageLoader("train.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": format_percent, "figure": format_figure, "one_in": one_in}
    page = environment.get_template("report.html.j2").render(
        title=title,
        subtitle=subtitle,
        targets=[
            _show(test, metrics, calibration, neighbours, read_image, is_folder=is_folder)
            for test in tests
        ],
        sources=metrics["strata"],
        dataset=metrics.get("dataset"),
        is_folder=is_folder,
    )
    # No line break between a number and its sign.
    return page.replace(" %", "&nbsp;%")


def _read_from_tar(dataset: str, row: Mapping[str, Any]) -> bytes:
    # Reads only the image's range of the tar.
    tar = storage.join(dataset, row["shard"])
    image = storage.read_range(tar, row["tar_offset"], row["tar_size"])
    if not image.startswith(_JPEG):
        raise BadShard(f"{tar}: no image where {row['key']} should be; run `infineg verify`")
    return image


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
    neighbours: Mapping[str, Sequence[Neighbour]],
    read_image: ReadImage,
    *,
    is_folder: bool,
) -> dict[str, Any]:
    metrics, calibration = all_metrics["target"][test.target], calibrations[test.target]
    mistakes, misses = (
        show_pictures(
            test,
            calibration,
            worst_rows(test, of_positives=of_positives),
            neighbours=neighbours,
            read_image=read_image,
        )
        for of_positives in (False, True)
    )
    prefix = "fpr_at_tpr"
    return {
        "name": test.target,
        "metrics": metrics,
        "levels": [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)],
        "summary": summarise(test.target, metrics, is_folder=is_folder),
        "strata_figures": draw_strata(test, metrics),
        "figures": draw_curves(test, metrics, calibration),
        "false_positives": mistakes,
        "misses": misses,
    }
