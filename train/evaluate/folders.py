"""Evaluates a run on folders of images outside the data set."""

import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from train.config import load_train_config
from train.metrics.predictions import of_target, prediction_rows, write_predictions
from train.metrics.summary import measure, write_metrics
from train.model.info import read_model_info
from train.predict.output import predict_paths
from train.report.page import render_report
from train.report.wording import count

_log = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "source", "stratum", "split", "label", "shard", "uri")]
    + [(name, pa.float32()) for name in ("similarity", "inclusion_probability")]
    + [(name, pa.int64()) for name in ("tar_offset", "tar_size")]
)


def evaluate_folders(
    run_dir: str | os.PathLike[str], folders: Sequence[tuple[str | os.PathLike[str], str]]
) -> dict[str, Any]:
    """Metrics on (folder, label) pairs; label "" means none of the targets.

    Uses the run's calibration and treats each folder as a source of a test split. Writes
    RUN/evaluations/<names of the folders>/metrics.json and report.html, and returns the content of
    metrics.json; `unreadable` counts the files that are no images. Raises ConfigError for a run
    that is not calibrated, an unknown label, a missing folder, or one within another, and
    InfinegError for a folder without a usable image.
    """
    run = Path(run_dir)
    info = read_model_info(run)
    if info is None or info.calibration is None:
        raise ConfigError(f"{run}: no evaluated run there; run `infineg evaluate {run}` first")
    for folder, label in folders:
        if label and label not in info.targets:
            raise ConfigError(f"--label {label!r} of {folder}: allowed are '', {info.targets}")
    _refuse_overlaps([Path(folder) for folder, _ in folders])
    _, _, config = load_train_config(run / "config.yaml")
    predicted = [_predict_folder(run, folder, label, info.targets) for folder, label in folders]
    predictions = pa.concat_tables([rows for rows, _, _ in predicted])
    num_unreadable = sum(num for _, _, num in predicted)
    paths = {key: path for _, paths, _ in predicted for key, path in paths.items()}
    tests = [
        of_target(predictions, target, split="test", targets=info.targets)
        for target in info.targets
    ]
    metrics = measure(tests, info, config) | {"unreadable": num_unreadable}
    out = run / "evaluations" / "-".join(Path(folder).resolve().name for folder, _ in folders)
    write_predictions(out, predictions)
    names = ", ".join(Path(folder).name for folder, _ in folders)
    page = render_report(
        tests,
        metrics,
        info.calibration,
        title=f"{', '.join(info.targets)}: {run.name} on {names}",
        subtitle=f"{count(len(predictions), 'picture')}; "
        + count(num_unreadable, "file is not an image", "files are not images"),
        paths=paths,
    )
    storage.write_atomic(str(out / "report.html"), page.encode())
    write_metrics(out, metrics)
    _log.info("evaluated %d images, %d files unreadable: %s", len(predictions), num_unreadable, out)
    return metrics


def _refuse_overlaps(folders: Sequence[Path]) -> None:
    """Raises ConfigError if images would count twice, perhaps with two labels."""
    for first, second in itertools.permutations(folders, 2):
        if second.resolve().is_relative_to(first.resolve()):
            raise ConfigError(
                f"--images {second} is {first} or lies in it: its images would count twice; give "
                "folders that have none in common"
            )


def _predict_folder(
    run: Path, folder: str | os.PathLike[str], label: str, targets: Sequence[str]
) -> tuple[pa.Table, dict[str, str], int]:
    """Rows like those of predictions.parquet, with escaped paths as keys; the path of each key;
    and the number of other files.
    """
    found = list(predict_paths(run, [folder]))
    predicted = [(each.path, each.prediction) for each in found if each.prediction is not None]
    if not predicted:
        first = f", the first: {found[0].as_text()}" if found else ""
        raise InfinegError(
            f"{folder}: none of {len(found):,} files is an image that can be read{first}; "
            "check --images"
        )
    common = {
        "source": storage.escape(str(folder)),
        "split": "test",
        "label": label,
        "inclusion_probability": 1.0,
    }
    paths = {storage.escape(path): path for path, _ in predicted}
    table = pa.Table.from_pylist([{"key": key, "uri": key, **common} for key in paths], _SCHEMA)
    logits = [[prediction.logits[target] for target in targets] for _, prediction in predicted]
    logits_NK = np.array(logits, np.float32).reshape(-1, len(targets))
    rows = prediction_rows(table, logits_NK, targets=targets, reference=None)
    return rows, paths, len(found) - len(predicted)
