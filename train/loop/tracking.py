"""The curves of a run in an experiment tracker: Weights & Biases, MLflow or Trackio.

Each is an optional package, imported only with `train.tracker`. Offline, which is the default, all
stays in the run's folder, and nothing is sent to anybody.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pydantic import JsonValue

from pipeline.dataset.keys import sha256_hex
from pipeline.errors import ConfigError
from train.config import TrackerConfig

# Reports of these packages to their makers, which they send offline, too.
_CALLS_HOME = {
    "wandb": {"WANDB_ERROR_REPORTING": "false"},
    "mlflow": {"MLFLOW_DISABLE_TELEMETRY": "true"},
    "trackio": {"HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_ANALYTICS_ENABLED": "False"},
}
_RUN_TAG = "infineg_run"


class Tracker(Protocol):
    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """step: samples seen."""

    def finish(self, *, failed: bool) -> None: ...


@contextmanager
def open_tracker(
    config: TrackerConfig | None, run_dir: Path, settings: Mapping[str, JsonValue]
) -> Iterator[Tracker | None]:
    """A resumed run continues under the same id, which is made of the folder's path.

    Raises ConfigError if the package is not installed.
    """
    if config is None:
        yield None
        return
    if not config.online:
        for name, value in _CALLS_HOME[config.kind].items():
            os.environ.setdefault(name, value)
    folder = run_dir.resolve()
    _point_to(config, folder)
    try:
        module = importlib.import_module(config.kind)
    except ImportError:
        raise ConfigError(
            f"train.tracker: {config.kind} is not installed; pip install {config.kind}"
        ) from None
    kinds: dict[str, Callable[..., Tracker]] = {
        "wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio,
    }  # fmt: skip
    tracker = kinds[config.kind](module, config, folder, dict(settings))
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        tracker.finish(failed=failed)


def _point_to(config: TrackerConfig, folder: Path) -> None:
    """Offline, to the run's folder; Trackio reads this when it is imported."""
    if config.kind == "trackio" and not config.online:
        os.environ["TRACKIO_DIR"] = str(folder / "trackio")
        os.environ.pop("TRACKIO_SPACE_ID", None)


def _run_id(folder: Path) -> str:
    return sha256_hex(str(folder).encode())[:16]


class _Wandb:
    def __init__(
        self, wandb: Any, config: TrackerConfig, folder: Path, settings: dict[str, JsonValue]
    ) -> None:
        self._run = wandb.init(
            project=config.project,
            name=config.name or folder.name,
            id=_run_id(folder),
            resume="allow",
            dir=str(folder),
            mode="online" if config.online else "offline",
            config=settings,
        )

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio(_Wandb):
    """Has the functions of W&B. Its runs are known by their names: a resumed one is appended to."""

    def __init__(
        self, trackio: Any, config: TrackerConfig, folder: Path, settings: dict[str, JsonValue]
    ) -> None:
        self._run = trackio.init(
            project=config.project,
            name=config.name or folder.name,
            resume="allow",
            config=settings,
        )

    def finish(self, *, failed: bool) -> None:  # noqa: ARG002 Trackio has no word for it
        self._run.finish()


class _Mlflow:
    """Online: where MLFLOW_TRACKING_URI says. A resumed run is found by a tag."""

    def __init__(
        self, mlflow: Any, config: TrackerConfig, folder: Path, settings: dict[str, JsonValue]
    ) -> None:
        if not config.online:
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        experiment = mlflow.set_experiment(config.project)
        tag = _run_id(folder)
        found = mlflow.search_runs(
            experiment_ids=[experiment.experiment_id],
            filter_string=f"tags.{_RUN_TAG} = '{tag}'",
            output_format="list",
        )
        self._mlflow = mlflow
        mlflow.start_run(
            run_id=found[0].info.run_id if found else None,
            run_name=config.name or folder.name,
            tags={_RUN_TAG: tag},
        )
        if not found:  # MLflow lets nobody change them
            mlflow.log_params(settings)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def finish(self, *, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")
