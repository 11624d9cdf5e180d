"""`infineg compare`: runs on the test pictures that they have in common, picture by picture."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from pipeline.page.pictures import read_from_tar
from train.config import load_train_config
from train.metrics.comparison import Comparison, compare_predictions
from train.metrics.predictions import TargetPredictions, of_target
from train.model.info import ModelInfo, read_model_info
from train.report.comparison import render_comparisons

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparedRun:
    """A run with what `evaluate` left in it. rows: the predictions of test, in all runs the same
    pictures in the same order.
    """

    path: Path
    info: ModelInfo
    rows: pa.Table

    @property
    def name(self) -> str:
        return str(self.path)

    def predictions(self, target: str) -> TargetPredictions:
        return of_target(self.rows, target, split="test", targets=self.info.targets)


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> list[ComparedRun]:
    """Raises ConfigError for a folder without an evaluated run, and without common pictures.

    Pictures that have another label in one of the runs are left out, with a warning.
    """
    if len(paths) < 2:
        raise ConfigError("compare needs two runs or more: infineg compare RUN RUN")
    runs = [_read_run(Path(path)) for path in paths]
    of_runs = [
        dict(zip(run.rows["key"].to_pylist(), run.rows["label"].to_pylist(), strict=True))
        for run in runs
    ]
    common = [key for key in of_runs[0] if all(key in labels for labels in of_runs[1:])]
    keys = [key for key in common if len({labels[key] for labels in of_runs}) == 1]
    if not keys:
        counts = ", ".join(f"{run.name}: {len(run.rows):,}" for run in runs)
        raise ConfigError(
            f"these runs have no test picture in common ({counts}). Compare runs that were trained "
            "on one data set, or on generations of it"
        )
    if len(keys) < len(common):
        num_other = len(common) - len(keys)
        _log.warning("%s common pictures have different labels and are left out", f"{num_other:,}")
    return [_on(run, keys) for run in runs]


def _read_run(run: Path) -> ComparedRun:
    info = read_model_info(run)
    path = run / "predictions.parquet"
    if info is None or info.calibration is None or not path.exists():
        raise ConfigError(f"{run}: no evaluated run is there; `infineg evaluate {run}` makes one")
    rows = pq.read_table(path)
    if "uri" not in rows.column_names:  # of versions before 0.3
        rows = rows.append_column("uri", pa.nulls(len(rows), pa.string()))
    return ComparedRun(run, info, rows.filter(pc.equal(rows["split"], "test")))


def _on(run: ComparedRun, keys: Sequence[str]) -> ComparedRun:
    place = {key: row for row, key in enumerate(run.rows["key"].to_pylist())}
    rows = run.rows.take(pa.array([place[key] for key in keys], pa.int64()))
    return ComparedRun(run.path, run.info, rows)


def compare_runs(runs: Sequence[ComparedRun]) -> list[Comparison]:
    """Each run but the first with the first, for each target that all have.

    Raises ConfigError if there is none.
    """
    first = runs[0]
    targets = [t for t in first.info.targets if all(t in run.info.targets for run in runs)]
    if not targets:
        named = "; ".join(f"{run.name}: {', '.join(run.info.targets)}" for run in runs)
        raise ConfigError(f"these runs have no target in common ({named})")
    return [
        compare_predictions(
            first.predictions(target),
            run.predictions(target),
            thresholds=(_threshold(first, target), _threshold(run, target)),
            name=run.name,
        )
        for run in runs[1:]
        for target in targets
    ]


def _threshold(run: ComparedRun, target: str) -> float:
    return (run.info.thresholds or {})[target]


def render_comparison(out: str, first: ComparedRun, comparisons: Sequence[Comparison]) -> None:
    """Writes the page; without pictures, and with a warning, if the data set cannot be read."""
    num_common = len(first.rows)
    show = partial(render_comparisons, first.name, comparisons, num_common=num_common)
    try:
        dataset = load_train_config(first.path / "config.yaml")[0].output.path
        page = show(read_image=partial(read_from_tar, dataset))
    except (InfinegError, OSError) as error:
        _log.warning("%s has no pictures: %s", out, storage.as_failure(error) or error)
        page = show(read_image=None)
    storage.write_atomic(out, page.encode())


def as_json(first: ComparedRun, comparisons: Sequence[Comparison]) -> str:
    """One object: `first`, `n` and `comparisons`."""
    content = {
        "first": first.name,
        "n": len(first.rows),
        "comparisons": [asdict(each) for each in comparisons],
    }
    return json.dumps(content, indent=1) + "\n"
