"""Evaluates a calibrated run on folders of images that are in no data set."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import ConfigError
from train.config import load_train_config
from train.evaluate.predict import predict_paths
from train.metrics.predictions import of_target, prediction_rows, write_predictions
from train.metrics.summary import measure, write_metrics
from train.model.detector import read_model_info
from train.report.page import report_on_folders, target_reports

_log = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "source", "stratum", "split", "label", "shard")]
    + [(name, pa.float32()) for name in ("similarity", "inclusion_probability")]
    + [(name, pa.int64()) for name in ("tar_offset", "tar_size")]
)


def evaluate_folders(
    run_dir: str | os.PathLike[str], folders: Sequence[tuple[str | os.PathLike[str], str]]
) -> dict[str, Any]:
    """Metrics on (folder, label) pairs; label "" is none of the targets.

    Uses the calibration that the run has. Returns what it writes to
    RUN/evaluations/<names of the folders>/metrics.json, beside report.html, as of a test split in
    which each folder is a source; `unreadable` counts the files that are no images. Raises
    ConfigError for a run that is not calibrated, an unknown label, and a folder that is not there.
    """
    run = Path(run_dir)
    info = read_model_info(run)
    if info is None or info.calibration is None:
        raise ConfigError(f"{run}: no evaluated run there; `infineg evaluate {run}` makes it one")
    for folder, label in folders:
        if label and label not in info.targets:
            raise ConfigError(f"--label {label!r} of {folder}: allowed are '', {info.targets}")
    _, _, config = load_train_config(run / "config.yaml")
    predicted = [_predict_folder(run, folder, label, info.targets) for folder, label in folders]
    predictions = pa.concat_tables([rows for rows, _ in predicted])
    num_unreadable = sum(num for _, num in predicted)
    tests = [
        of_target(predictions, target, split="test", targets=info.targets)
        for target in info.targets
    ]
    metrics = measure(tests, info, config) | {"unreadable": num_unreadable}
    out = run / "evaluations" / "-".join(Path(folder).resolve().name for folder, _ in folders)
    write_predictions(out, predictions)
    names = ", ".join(Path(folder).name for folder, _ in folders)
    page = report_on_folders(
        target_reports(tests, metrics, info.calibration),
        metrics,
        title=f"{', '.join(info.targets)}: {run.name} on {names}",
        subtitle=f"{len(predictions):,} pictures; {num_unreadable:,} files were no images",
    )
    storage.write_atomic(str(out / "report.html"), page.encode())
    write_metrics(out, metrics)
    _log.info("evaluated %d images, %d files unreadable: %s", len(predictions), num_unreadable, out)
    return metrics


def _predict_folder(
    run: Path, folder: str | os.PathLike[str], label: str, targets: Sequence[str]
) -> tuple[pa.Table, int]:
    """Rows as of `predictions.parquet`, the path as key; and how many files were no images."""
    found = list(predict_paths(run, [folder]))
    answered = [(each.path, each.answer) for each in found if each.answer is not None]
    about = {"source": str(folder), "split": "test", "label": label, "inclusion_probability": 1.0}
    rows = pa.Table.from_pylist([{"key": path, **about} for path, _ in answered], _SCHEMA)
    logits = [[answer.logits[target] for target in targets] for _, answer in answered]
    logits_NK = np.array(logits, np.float32).reshape(-1, len(targets))
    predicted = prediction_rows(rows, logits_NK, targets=targets, reference=None)
    return predicted, len(found) - len(answered)
