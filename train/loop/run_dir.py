"""The folder of a run: whether it may begin or continue there, on which rows, and its config."""

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import JsonValue

from pipeline import storage
from pipeline.config import yaml_text
from pipeline.config.loading import drop_removed
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import DatasetInfo, Generation
from pipeline.encoders.origin import weights_origin
from pipeline.errors import ConfigError
from train.config import Regularization, TrainConfig
from train.data.order import extend_segments
from train.distributed.world import World
from train.loop.checkpoint import Checkpoint, find_checkpoint
from train.loop.state import TrainState
from train.model.info import ModelInfo, Segment, read_model_info

_log = logging.getLogger(__name__)

GenerationSwitch = int | Literal["latest"] | None
_HOW_ONLY = {"batch_size", "runtime", "precision"}  # of the encoder: how it runs


@dataclass(frozen=True)
class Run:
    """What a run works on, and how far it has come."""

    path: Path
    dataset: DatasetInfo
    generation: Generation
    train_config: TrainConfig  # with the batch_size that fits the rows it began with
    segments: tuple[Segment, ...]  # on which rows it was and is trained; the last continues
    settings: dict[str, Any]  # all that the trained weights depend on
    checkpoint: Checkpoint | None
    is_finished: bool

    @property
    def first_step(self) -> int:
        """The step that it begins or continues with."""
        return 0 if self.checkpoint is None else self.checkpoint.step


def open_run(
    config: Config,
    train_config: TrainConfig,
    world: World,
    *,
    resume: bool,
    wanted: GenerationSwitch = None,
) -> Run:
    """Reads the folder and writes nothing. `wanted`: the generation to train or continue on.

    Raises ConfigError if the folder holds a run with other settings, an unfinished one without
    `resume`, or one on a newer generation.
    """
    path = Path(train_config.run)
    if "://" in train_config.run or storage.escape(str(path)) != str(path):
        # TensorBoard takes no other name, and a URL would become a folder of that name.
        raise ConfigError(f"train.run: {path} is no path of a folder in UTF-8; choose another")
    root = config.output.path
    dataset = Dataset(root).read_info()
    if dataset.targets != config.target_names:
        raise ConfigError(
            f"targets: {list(config.target_names)}, but {root} was built for "
            f"{list(dataset.targets)}"
        )
    model_info, checkpoint = read_model_info(path), find_checkpoint(path)
    before = model_info or checkpoint
    number = _choose_generation(root, train_config, before if resume else None, wanted)
    # That of the main process: one more may be committed while the processes start.
    mine = torch.tensor(number if world.is_main else 0, device=world.device)
    generation = Dataset(root).read_generation(int(world.all_reduce_sum(mine).item()))
    first = _segments_of(before)[0].generation if before is not None else generation.number
    train_config = fit_batch(train_config, root, first)
    settings = _settings_of(config, train_config, dataset, generation)
    if before is not None:
        _check_settings(path, before, settings, switches=resume and wanted is not None)
    if checkpoint is not None and model_info is None and not resume:
        raise ConfigError(
            f"train.run: {path} stopped at step {checkpoint.step:,} of {train_config.steps:,}; "
            "--resume continues it. Otherwise choose another train.run, or remove that folder."
        )
    step = 0 if checkpoint is None else checkpoint.step
    segments = _segments_of(before)
    if not segments or segments[-1].generation != generation.number:
        segments = extend_segments(segments, generation.number, step)
    is_finished = model_info is not None
    return Run(path, dataset, generation, train_config, segments, settings, checkpoint, is_finished)


def with_free_run(config: Config, train_config: TrainConfig) -> TrainConfig:
    """The settings with the first of RUN, RUN-2, RUN-3, ... that is this run, or no run yet.

    It is this run if it has the same settings and is on the generation that would be trained on.
    """
    root = config.output.path
    dataset, opened = Dataset(root).read_info(), Dataset(root)
    generation = opened.read_generation(train_config.generation or opened.latest_number())
    settings = _settings_of(
        config, fit_batch(train_config, root, generation.number), dataset, generation
    )
    for number in itertools.count(1):
        run = train_config.run if number == 1 else f"{train_config.run}-{number}"
        before = read_model_info(run) or find_checkpoint(Path(run))
        if before is None or not _changed(before, settings):
            return train_config.model_copy(update={"run": run})
    raise AssertionError  # the loop has no end


def fit_batch(train_config: TrainConfig, root: str, generation: int) -> TrainConfig:
    """A head's settings, with the batch that is enough for the rows of a generation."""
    if train_config.mode != "head":
        return train_config
    splits = ("train",) if train_config.folds == 1 else ("train", "val")
    shards = Dataset(root).read_generation(generation).shards
    return train_config.for_rows(sum(each.num_samples for each in shards if each.split in splits))


def parse_generation(text: str) -> GenerationSwitch:
    """`--generation`: a number, or latest."""
    if text == "latest":
        return "latest"
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"--generation: {text!r}; give a number from 1, or latest")
    return int(text)


def write_config(run: Run, config: Config, train_config: TrainConfig) -> None:
    """`config.yaml` as resolved: training on it again gives this run."""
    train = train_config.model_copy(update={"generation": run.generation.number})
    resolved = config.model_copy(update={"train": train.model_dump(mode="json")})
    data = resolved.model_dump(mode="json")
    for role in ("positives", "sources"):  # a training reads none of them
        data[role] = _redacted(data[role])
    text = yaml_text.dump(data)
    storage.write_atomic(str(run.path / "config.yaml"), text.encode())


def _redacted(value: Any) -> Any:
    """Without the secrets of addresses."""
    if isinstance(value, dict):
        return {name: _redacted(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_redacted(child) for child in value]
    return storage.redact(value) if isinstance(value, str) else value


def _choose_generation(
    root: str,
    train_config: TrainConfig,
    before: ModelInfo | Checkpoint | None,
    generation: GenerationSwitch,
) -> int:
    """The number of the generation to train on; `before` is the run that continues."""
    latest = Dataset(root).latest_number()
    wanted = latest if generation == "latest" else generation
    if before is None:
        return wanted or train_config.generation or latest
    if wanted is None:
        known = {None, *(segment.generation for segment in _segments_of(before))}
        is_known = train_config.generation in known
        return before.generation if is_known else train_config.generation or latest
    if wanted < before.generation:
        raise ConfigError(
            f"--generation {wanted}: {train_config.run} is trained on generation "
            f"{before.generation} and continues on that or a newer one ({root} has up to {latest})"
        )
    if isinstance(before, ModelInfo) and wanted > before.generation:
        _log.warning(
            "--generation %s: %s is finished on generation %d; another train.run trains on it",
            generation, train_config.run, before.generation,
        )  # fmt: skip
        return before.generation
    return wanted


def _segments_of(before: ModelInfo | Checkpoint | None) -> tuple[Segment, ...]:
    """() if nothing was trained."""
    if before is None:
        return ()
    return before.segments or (Segment(generation=before.generation, first_step=0),)


def _settings_of(
    config: Config, train_config: TrainConfig, dataset: DatasetInfo, generation: Generation
) -> dict[str, Any]:
    return {
        "targets": list(config.target_names),
        "encoder": config.encoder.model_dump(mode="json", exclude=_HOW_ONLY),
        "dataset": dataset.fingerprint,
        **train_config.result_inputs(),
        "generation": generation.number,
    }


def _changed(before: ModelInfo | Checkpoint, settings: Mapping[str, Any]) -> set[str]:
    """Names of the settings that are others than those of a run."""
    was = dict(before.settings)
    drop_removed({"train": was})
    return {name for name in was.keys() | settings.keys() if was.get(name) != settings.get(name)}


def _check_settings(
    path: Path, before: ModelInfo | Checkpoint, settings: Mapping[str, Any], *, switches: bool
) -> None:
    """Raises ConfigError if they differ; a run that switches may differ in the generation."""
    was, names = before.settings, _changed(before, settings)
    if switches:
        names -= {"generation"}
    if not names:
        return
    listed = "; ".join(
        f"{name} was {was.get(name)}, is {settings.get(name)}" for name in sorted(names)
    )
    hint = ""
    if names == {"generation"} and isinstance(before, Checkpoint):
        hint = f" --resume --generation {settings['generation']} continues on a newer one."
    raise ConfigError(
        f"train.run: {path} holds a run with other settings ({listed}). Choose another train.run, "
        f"or remove that folder.{hint}"
    )


def describe_model(
    state: TrainState, settings: Mapping[str, JsonValue], *, steps: int
) -> ModelInfo:
    """`model.json` of the detector trained for `steps`, before its calibration."""
    train_config, encoder = state.train_config, state.detector.encoder
    return ModelInfo(
        targets=state.config.target_names,
        encoder=state.config.encoder,
        encoder_weights=weights_origin(state.config.encoder),
        preprocessing=encoder.preprocessing,
        embedding_dim=encoder.embedding_dim,
        hidden_dim=train_config.hidden_dim,
        dropout=train_config.dropout,
        folds=train_config.folds,
        is_standardized=True,
        mode=train_config.mode,
        positive_share=train_config.num_positives / train_config.batch_size,
        trained_priors=_trained_priors(state),
        generation=state.generation.number,
        segments=state.segments,
        dataset=state.dataset.fingerprint,
        samples_seen=steps * train_config.batch_size,
        settings=dict(settings),
    )


def _trained_priors(state: TrainState) -> dict[str, float] | None:
    """Each target's share of the mix at which its logits are log-odds; None without such a mix.

    There is none with correction: none, which leaves hard negatives over-represented, with focal
    or ohem, which weigh by difficulty, and with labels that are smoothed or mixed. Positives of
    other targets are negatives as often as they are drawn.
    """
    train_config = state.train_config
    is_regularized = train_config.regularization != Regularization()
    if train_config.correction == "none" or train_config.loss != "bce" or is_regularized:
        return None
    share_of_label = train_config.num_positives / train_config.batch_size
    label_N = state.rows.label_N
    rate_N = state.mixture.draw_rate_N
    num_positives = rate_N[label_N != ""].sum()
    return {
        target: float(share_of_label * rate_N[label_N == target].sum() / num_positives)
        for target in state.rows.targets
    }
