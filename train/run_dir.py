"""The folder of a run: whether one may begin or go on there and its config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import manifest, storage
from pipeline.commits import DatasetInfo, Generation
from pipeline.config import Config
from pipeline.errors import ConfigError
from train.checkpoint import Checkpoint, find_checkpoint
from train.config import TrainConfig
from train.model import read_model_info


@dataclass(frozen=True)
class Run:
    """What a run works on, and how far it has come."""

    path: Path
    dataset: DatasetInfo
    generation: Generation
    settings: dict[str, Any]  # all that the trained weights depend on
    checkpoint: Checkpoint | None
    is_finished: bool


def open_run(config: Config, train_config: TrainConfig, *, resume: bool) -> Run:
    """Looks, and writes nothing.

    Raises ConfigError where the folder holds a run with other settings, or an unfinished one
    that `resume` was not asked to continue.
    """
    path = Path(train_config.run)
    root = config.output.path
    dataset = manifest.require_info(root)
    if dataset.targets != config.target_names:
        raise ConfigError(
            f"targets: {list(config.target_names)}, but {root} was built for "
            f"{list(dataset.targets)}"
        )
    model_info, checkpoint = read_model_info(path), find_checkpoint(path)
    before = model_info or checkpoint
    number = train_config.generation
    if number is None and before is not None and resume:
        number = before.generation  # a run ends on the data it began with
    generation = manifest.read_generation(root, number)
    settings = _settings_of(config, train_config, dataset, generation)
    if before is not None and before.settings != settings:
        raise ConfigError(
            f"train.run: {path} holds a run with other settings "
            f"({'; '.join(_differences(before.settings, settings))}). Choose another train.run, "
            "or remove that folder."
        )
    if checkpoint is not None and model_info is None and not resume:
        raise ConfigError(
            f"train.run: {path} stopped at step {checkpoint.step:,} of {train_config.steps:,}; "
            "--resume continues it. Otherwise choose another train.run, or remove that folder."
        )
    return Run(path, dataset, generation, settings, checkpoint, model_info is not None)


def write_config(run: Run, config: Config, train_config: TrainConfig) -> None:
    """`config.yaml` as resolved: training on it again gives this run."""
    train = train_config.model_copy(update={"generation": run.generation.number})
    resolved = config.model_copy(update={"train": train.model_dump(mode="json")})
    text = yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False)
    storage.write_atomic(str(run.path / "config.yaml"), text.encode())


def _settings_of(
    config: Config, train_config: TrainConfig, dataset: DatasetInfo, generation: Generation
) -> dict[str, Any]:
    how_only = {"batch_size", "runtime"}
    return {
        "targets": list(config.target_names),
        "encoder": config.encoder.model_dump(mode="json", exclude=how_only),
        "dataset": dataset.fingerprint,
        **train_config.result_inputs(),
        "generation": generation.number,
    }


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return [f"{name} was {before.get(name)}, is {now.get(name)}" for name in names]
