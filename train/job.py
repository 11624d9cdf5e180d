"""What a run trains, and on what: made the same in every process that takes part."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pipeline.commits import DatasetInfo, Generation
from pipeline.config import Config
from pipeline.encoders import Encoder, Preprocessing, encoder_identity, load_encoder
from train.checks import (
    check_embeddings,
    check_image_sizes,
    check_processes,
    warn_of_repetition,
)
from train.config import Mode, TrainConfig
from train.corrections import LossTerms, loss_terms
from train.data import (
    AugmentedImages,
    Batch,
    Batches,
    CachedEmbeddings,
    Inputs,
)
from train.device import DecodedOnDevice
from train.distributed import World
from train.learning import average_of_weights, optimizer_of, trained_part
from train.model import Detector, build_detector
from train.order import BatchOrder, RankSlice
from train.rows import TrainRows, read_embeddings, read_train_rows
from train.views import ViewedEmbeddings, ViewMaker

_MAX_WORKERS = 8  # decoding processes by default: what feeds one GPU


@dataclass(frozen=True)
class Job:
    """What the loop works with. The modules change as it runs, all else stays."""

    config: Config
    train_config: TrainConfig
    dataset: DatasetInfo
    generation: Generation
    world: World
    rows: TrainRows
    terms: LossTerms
    detector: Detector
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, with fp16; else it does nothing
    average: AveragedModel | None  # of `trained`
    view_VPD: NDArray[np.float16] | None  # of positives, beside the data set's (train.views)

    @property
    def trained(self) -> nn.Module:
        """The module that checkpoints carry."""
        return trained_part(self.detector, self.train_config)

    @property
    def evaluated(self) -> nn.Module:
        """The module, or its average, that is evaluated and exported."""
        return self.trained if self.average is None else self.average.module

    @property
    def uses_amp(self) -> bool:
        amp = self.train_config.amp
        return amp in ("bf16", "fp16") or (amp == "auto" and self.world.device.type == "cuda")

    @property
    def amp_dtype(self) -> torch.dtype:
        return torch.float16 if self.train_config.amp == "fp16" else torch.bfloat16


def prepare_job(
    config: Config,
    train_config: TrainConfig,
    dataset: DatasetInfo,
    generation: Generation,
    world: World,
) -> Job:
    """Reads the rows, builds detector and optimizer. Raises ConfigError where they do not fit."""
    check_processes(train_config, world)
    rows = read_train_rows(config.output.path, generation, config.target_names)
    terms = terms_of(rows, train_config)
    warn_of_repetition(train_config, rows)
    torch.manual_seed(train_config.seed)
    encoder = load_encoder(config.encoder)
    if train_config.mode == "head" or train_config.head_steps:
        check_embeddings(config, dataset, encoder)
    detector = build_detector(
        encoder,
        len(config.targets),
        hidden_dim=train_config.hidden_dim,
        dropout=train_config.dropout,
    )
    detector.to(world.device).to(memory_format=torch.channels_last)
    check_image_sizes(detector, train_config)
    return Job(
        config,
        train_config,
        dataset,
        generation,
        world,
        rows,
        terms,
        detector,
        optimizer_of(detector, train_config),
        torch.amp.GradScaler(world.device.type, enabled=train_config.amp == "fp16"),
        average_of_weights(detector, train_config),
        _views_of(config, train_config, rows, encoder, world),
    )


def with_rows(job: Job, rows: TrainRows) -> Job:
    """The same job on some of its rows, with optimizer and average as at the beginning."""
    return replace(
        job,
        rows=rows,
        terms=terms_of(rows, job.train_config),
        optimizer=optimizer_of(job.detector, job.train_config),
        average=average_of_weights(job.detector, job.train_config),
    )


def terms_of(rows: TrainRows, train_config: TrainConfig) -> LossTerms:
    return loss_terms(
        rows, train_config.correction, corrects_unknown=train_config.unknown == "nnpu"
    )


def open_stream(job: Job, mode: Mode, steps: range, *, image_size: int) -> Iterator[Batch]:
    """This process's batches of `steps`: embeddings for the head, images for the backbone."""
    train_config, rows = job.train_config, job.rows
    root = job.config.output.path
    if mode == "head":
        return embedding_batches(job, read_embeddings(root, rows)).stream(steps, workers=0)
    images = AugmentedImages(
        root,
        rows,
        preprocessing=_at_size(job.detector.encoder.preprocessing, image_size),
        strength=train_config.augment,
        seed=train_config.seed,
        cache_dir=train_config.cache_dir,
    )
    workers = train_config.workers
    if workers is None:
        workers = min(os.cpu_count() or 1, _MAX_WORKERS)
    device = job.world.device
    if train_config.decode == "cuda":
        decoded = DecodedOnDevice(images, device)
        return Batches(rows, job.terms, _order_of(job), decoded).stream(steps, workers=0)
    return Batches(rows, job.terms, _order_of(job), images).stream(
        steps, workers=workers, kind=train_config.loader, pin=device.type == "cuda"
    )


def embedding_batches(job: Job, embedding_ND: NDArray[np.float16]) -> Batches:
    """Batches of the embeddings of the job's rows."""
    inputs: Inputs = CachedEmbeddings(embedding_ND)
    if job.view_VPD is not None:
        inputs = ViewedEmbeddings(
            embedding_ND, job.view_VPD, positives=job.rows.positives, seed=job.train_config.seed
        )
    return Batches(job.rows, job.terms, _order_of(job), inputs)


def _order_of(job: Job) -> BatchOrder:
    train_config = job.train_config
    return BatchOrder(
        job.rows.positives,
        job.rows.negatives,
        num_positives=train_config.num_positives,
        batch_size=train_config.batch_size,
        window=train_config.shuffle_window,
        seed=train_config.seed,
        part=RankSlice(job.world.rank, job.world.size),
    )


def _views_of(
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


def _at_size(preprocessing: Preprocessing, image_size: int) -> Preprocessing:
    scale = image_size / preprocessing.image_size
    return replace(
        preprocessing, image_size=image_size, resize_size=round(preprocessing.resize_size * scale)
    )
