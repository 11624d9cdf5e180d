"""What a run trains and on which rows, made the same in every process that takes part."""

import os
import shutil
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pipeline.config.schema import Config
from pipeline.dataset.metadata import DatasetInfo, Generation
from pipeline.encoders.networks import Encoder, encoder_identity, load_encoder
from pipeline.errors import ConfigError
from train.config import TrainConfig
from train.data.bad_shards import RowImages, read_usable_rows
from train.data.corrections import LossTerms, loss_terms
from train.data.embeddings import MappedEmbeddings, open_embeddings
from train.data.images import ShardImages, open_cache
from train.data.mixture import Mixture, check_repetition, mix
from train.data.rows import TrainRows
from train.data.statistics import embed_photographs, photograph_statistics
from train.data.views import ViewMaker
from train.distributed.fsdp import shard
from train.distributed.world import World
from train.loop.optim import average_weights, make_optimizer, trained_part
from train.model.detector import DetectorModel, Standardize, build_detector
from train.model.info import Segment


@dataclass(frozen=True)
class TrainState:
    """What the loop works with. Modules, optimizer, scaler and average change as it runs."""

    config: Config
    train_config: TrainConfig
    dataset: DatasetInfo
    generation: Generation
    segments: tuple[Segment, ...]  # the last is trained on now
    world: World
    rows: TrainRows
    mixture: Mixture
    terms: LossTerms
    detector: DetectorModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, with fp16; else it does nothing
    average: AveragedModel | None  # of `trained`
    embedding_ND: NDArray[np.float16] | MappedEmbeddings | None  # if the head is trained on them
    view_VPD: NDArray[np.float16] | None  # of positives, besides the data set's (train.views)

    @property
    def trained(self) -> nn.Module:
        """The module that checkpoints hold."""
        return trained_part(self.detector, self.train_config)

    @property
    def evaluated(self) -> nn.Module:
        """The module, or its average, that is evaluated and exported."""
        return self.trained if self.average is None else self.average.module

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are spread over the processes (train.parallel)."""
        return self.train_config.parallel == "fsdp" and self.world.size > 1


def prepare_state(
    config: Config,
    train_config: TrainConfig,
    dataset: DatasetInfo,
    generation: Generation,
    world: World,
    *,
    segments: tuple[Segment, ...] = (),
    first_step: int = 0,
) -> TrainState:
    """Reads the rows, builds detector and optimizer. Raises ConfigError if they do not fit.

    segments: of a run that continues at first_step; default all steps on the generation.
    """
    check_processes(train_config, world)
    rows, segments = read_usable_rows(
        config.output.path,
        generation,
        config.target_names,
        segments=segments or (Segment(generation=generation.number, first_step=0),),
        first_step=first_step,
        policy=train_config.on_bad_shard,
        needs_images=train_config.mode == "finetune" or train_config.views > 1,
        embedding_dim=dataset.embedding_dim if train_config.uses_embeddings else None,
        num_folds=train_config.folds,
        world=world,
    )
    mixture = mix(rows, train_config.mixture)
    check_repetition(train_config, mixture)
    detector = _make_detector(config, train_config, dataset, world)
    embedding_ND = None
    if train_config.uses_embeddings:
        cache = open_cache(train_config.cache_dir, train_config.cache_gb)
        embedding_ND = open_embeddings(config.output.path, rows, dataset.embedding_dim, cache)
    _standardize(detector, config, train_config, rows, embedding_ND)
    if train_config.parallel == "fsdp" and world.size > 1:  # then no process has all weights
        shard(detector.encoder.backbone, detector.head, world)
    return TrainState(
        config=config,
        train_config=train_config,
        dataset=dataset,
        generation=generation,
        segments=segments,
        world=world,
        rows=rows,
        mixture=mixture,
        terms=_terms_of(rows, mixture, train_config),
        detector=detector,
        optimizer=make_optimizer(detector, train_config, num_rows=len(rows.keys)),
        scaler=torch.amp.GradScaler(world.device.type, enabled=train_config.amp == "fp16"),
        average=average_weights(detector, train_config),
        embedding_ND=embedding_ND,
        view_VPD=_read_views(config, train_config, rows, detector.encoder, world),
    )


def with_rows(state: TrainState, rows: TrainRows) -> TrainState:
    """The same state on some of its rows, with a new optimizer and average."""
    mixture = mix(rows, state.train_config.mixture)
    return replace(
        state,
        rows=rows,
        mixture=mixture,
        terms=_terms_of(rows, mixture, state.train_config),
        embedding_ND=None,
        optimizer=make_optimizer(state.detector, state.train_config, num_rows=len(rows.keys)),
        average=average_weights(state.detector, state.train_config),
    )


def _terms_of(rows: TrainRows, mixture: Mixture, train_config: TrainConfig) -> LossTerms:
    is_mixed = bool(train_config.mixture)
    return loss_terms(rows, train_config.correction, mixture=mixture if is_mixed else None)


def _make_detector(
    config: Config, train_config: TrainConfig, dataset: DatasetInfo, world: World
) -> DetectorModel:
    torch.manual_seed(train_config.seed)
    encoder = load_encoder(config.encoder)
    if train_config.uses_embeddings:
        check_embeddings(config, dataset, encoder)
    detector = build_detector(
        encoder,
        len(config.targets),
        hidden_dim=train_config.hidden_dim,
        dropout=train_config.dropout,
        num_folds=train_config.folds,
    )
    detector.to(world.device).to(memory_format=torch.channels_last)
    check_image_sizes(detector, train_config)
    return detector


def _standardize(
    detector: DetectorModel,
    config: Config,
    train_config: TrainConfig,
    rows: TrainRows,
    embedding_ND: NDArray[np.float16] | MappedEmbeddings | None,
) -> None:
    """Sets the statistics of the head's features; a run without embeddings makes some."""
    if embedding_ND is not None:
        statistics = photograph_statistics(rows, embedding_ND)
    else:
        images = ShardImages(
            config.output.path,
            rows.shards,
            train_config.cache_dir,
            cache_gb=train_config.cache_gb,
            generation=rows.generation,
        )
        usable = RowImages(rows, images, train_config.on_bad_shard)
        statistics = embed_photographs(rows, usable, detector.encoder.eval())
    assert isinstance(detector.head.standardize, Standardize)
    detector.head.standardize.set(*statistics)


def _read_views(
    config: Config, train_config: TrainConfig, rows: TrainRows, encoder: Encoder, world: World
) -> NDArray[np.float16] | None:
    if train_config.views <= 1:
        return None
    maker = ViewMaker(
        root=config.output.path,
        encoder=encoder,
        identity=encoder_identity(encoder, config.encoder),
        strength=train_config.augment,
        seed=train_config.seed,
        cache_dir=train_config.cache_dir,
    )
    return maker.read(rows, num_views=train_config.views, world=world)


def check_processes(train_config: TrainConfig, world: World) -> None:
    """Raises ConfigError if they cannot share a batch, or if their device or machine cannot."""
    num_samples, rest = divmod(train_config.batch_size, world.size)
    if rest:
        raise ConfigError(
            f"train.batch_size: {train_config.batch_size} must be a multiple of the {world.size} "
            "processes, which share every batch"
        )
    if train_config.accumulate > num_samples:
        raise ConfigError(
            f"train.accumulate: {train_config.accumulate} parts of {num_samples} samples, which a "
            f"process has of train.batch_size {train_config.batch_size}"
        )
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if train_config.compile and not any(shutil.which(name) for name in compilers):
        raise ConfigError(
            "train.compile: torch.compile needs a C++ compiler, and none of "
            f"{', '.join(compilers)} is on the PATH"
        )
    if train_config.amp == "fp16" and world.device.type != "cuda":
        raise ConfigError(
            f"train.amp: fp16 is for GPUs, and this runs on {world.device.type}; bf16 runs "
            "everywhere, off is float32"
        )
    if train_config.decode == "cuda" and world.device.type != "cuda":
        raise ConfigError(
            f"train.decode: cuda, but training runs on {world.device.type}; use train.decode: cpu"
        )


def check_image_sizes(detector: DetectorModel, train_config: TrainConfig) -> None:
    """Some networks, most transformers among them, take images of only one size."""
    for _, size in train_config.finetuning.image_sizes:
        pixels_BCHW = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        try:
            with torch.inference_mode():
                detector(pixels_BCHW.to(detector.encoder.mean.device))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"train.finetuning.image_sizes: {size} px does not fit the backbone: {error}"
            ) from None


def check_embeddings(config: Config, dataset: DatasetInfo, encoder: Encoder) -> None:
    """A head fits the embeddings of only one encoder: those that the data set holds."""
    identity = encoder_identity(encoder, config.encoder)
    if not dataset.encoder.startswith(f"{identity}:"):
        raise ConfigError(
            f"encoder: {identity}, but the embeddings of {config.output.path} come from "
            f"{dataset.encoder}. A head is trained on the encoder of the data set; "
            "train.mode: finetune with train.head_steps: 0 takes any."
        )
    assert encoder.embedding_dim == dataset.embedding_dim
