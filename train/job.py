"""What a run trains, and on what: made the same in every process that takes part."""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import nn

from pipeline.commits import DatasetInfo, Generation
from pipeline.config import Config
from pipeline.encoders import Encoder, encoder_identity, load_encoder
from pipeline.errors import ConfigError
from train.config import Mode, TrainConfig
from train.corrections import LossTerms, loss_terms
from train.data import (
    AugmentedImages,
    Batch,
    Batches,
    CachedEmbeddings,
)
from train.distributed import World
from train.model import Detector, ModelInfo, build_detector
from train.optim import Schedule, make_optimizer
from train.order import BatchOrder, RankSlice
from train.rows import TrainRows, read_embeddings, read_train_rows

_log = logging.getLogger(__name__)

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

    @property
    def trained(self) -> nn.Module:
        """The module that checkpoints carry."""
        return self.detector.head if self.train_config.mode == "head" else self.detector


def prepare_job(
    config: Config,
    train_config: TrainConfig,
    dataset: DatasetInfo,
    generation: Generation,
    world: World,
) -> Job:
    """Reads the rows, builds detector and optimizer. Raises ConfigError where they do not fit."""
    if train_config.batch_size % world.size:
        raise ConfigError(
            f"train.batch_size: {train_config.batch_size} must be a multiple of the {world.size} "
            "processes, which share every batch"
        )
    rows = read_train_rows(config.output.path, generation, config.target_names)
    terms = terms_of(rows, train_config)
    _warn_of_repetition(train_config, rows)
    torch.manual_seed(train_config.seed)
    encoder = load_encoder(config.encoder)
    if train_config.mode == "head" or train_config.head_steps:
        _check_embeddings(config, dataset, encoder)
    detector = build_detector(
        encoder,
        len(config.targets),
        hidden_dim=train_config.hidden_dim,
        dropout=train_config.dropout,
    )
    detector.to(world.device).to(memory_format=torch.channels_last)
    optimizer = optimizer_of(detector, train_config)
    return Job(config, train_config, dataset, generation, world, rows, terms, detector, optimizer)


def terms_of(rows: TrainRows, train_config: TrainConfig) -> LossTerms:
    return loss_terms(
        rows, train_config.correction, corrects_unknown=train_config.unknown == "nnpu"
    )


def open_stream(job: Job, mode: Mode, steps: range) -> Iterator[Batch]:
    """This process's batches of `steps`: embeddings for the head, images for the backbone."""
    train_config, rows = job.train_config, job.rows
    root = job.config.output.path
    if mode == "head":
        return embedding_batches(job, read_embeddings(root, rows)).stream(steps, workers=0)
    images = AugmentedImages(
        root,
        rows,
        preprocessing=job.detector.encoder.preprocessing,
        strength=train_config.augment,
        seed=train_config.seed,
        cache_dir=train_config.cache_dir,
    )
    workers = train_config.workers
    if workers is None:
        workers = min(os.cpu_count() or 1, _MAX_WORKERS)
    return Batches(rows, job.terms, _order_of(job), images).stream(steps, workers=workers)


def embedding_batches(job: Job, embedding_ND: NDArray[np.float16]) -> Batches:
    """Batches of the embeddings of the job's rows."""
    return Batches(job.rows, job.terms, _order_of(job), CachedEmbeddings(embedding_ND))


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


def describe_model(job: Job, settings: Mapping[str, JsonValue]) -> ModelInfo:
    """`model.json` of the trained, not yet calibrated, detector."""
    train_config, encoder = job.train_config, job.detector.encoder
    return ModelInfo(
        targets=job.config.target_names,
        encoder=job.config.encoder,
        preprocessing=encoder.preprocessing,
        embedding_dim=encoder.embedding_dim,
        hidden_dim=train_config.hidden_dim,
        dropout=train_config.dropout,
        mode=train_config.mode,
        positive_share=train_config.num_positives / train_config.batch_size,
        trained_priors=_trained_priors(job),
        generation=job.generation.number,
        dataset=job.dataset.fingerprint,
        samples_seen=train_config.num_samples,
        settings=dict(settings),
    )


def _trained_priors(job: Job) -> dict[str, float] | None:
    """Each target's share of the mix that its logits were trained on, where that is the stream's.

    None where hard negatives count for more than they are, or easy samples for less: then a logit
    is no log-odds in any mix that is known. Positives of other targets are negatives as often as
    they are drawn.
    """
    train_config = job.train_config
    if train_config.correction == "none" or train_config.loss != "bce":
        return None
    share_of_label = train_config.num_positives / train_config.batch_size
    label_N = job.rows.label_N
    num_positives = int((label_N != "").sum())
    return {
        target: share_of_label * int((label_N == target).sum()) / num_positives
        for target in job.rows.targets
    }


def optimizer_of(detector: Detector, train_config: TrainConfig) -> torch.optim.AdamW:
    warmup, last = train_config.warmup_steps, train_config.steps
    parts: list[tuple[nn.Module, Schedule]] = [
        (detector.head, Schedule(train_config.learning_rate, 0, warmup, last))
    ]
    if train_config.mode == "finetune":
        rate, first = train_config.backbone_learning_rate, train_config.head_steps
        parts.append((detector.encoder.backbone, Schedule(rate, first, warmup, last)))
    return make_optimizer(parts, weight_decay=train_config.weight_decay)


def _warn_of_repetition(train_config: TrainConfig, rows: TrainRows) -> None:
    num_positives = sum(map(len, rows.positives))
    repetition = train_config.steps * train_config.num_positives / num_positives
    if repetition > train_config.max_repetition_factor:
        _log.warning(
            "each of the %s positives is drawn %.0f times, over train.max_repetition_factor %g; "
            "fewer train.steps, a smaller train.positive_share or more positives help",
            f"{num_positives:,}", repetition, train_config.max_repetition_factor,
        )  # fmt: skip


def _check_embeddings(config: Config, dataset: DatasetInfo, encoder: Encoder) -> None:
    """A head fits the embeddings of one encoder only: those that the data set holds."""
    seen = encoder_identity(encoder, config.encoder)
    if not dataset.encoder.startswith(f"{seen}:"):
        raise ConfigError(
            f"encoder: {seen}, but the embeddings of {config.output.path} come from "
            f"{dataset.encoder}. A head is trained on the encoder of the data set; "
            "train.mode: finetune with train.head_steps: 0 takes any."
        )
    assert encoder.embedding_dim == dataset.embedding_dim
