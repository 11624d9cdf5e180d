"""What a run trains, and on what: made the same in every process that takes part."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pipeline.config.schema import Config
from pipeline.dataset.metadata import DatasetInfo, Generation
from pipeline.encoders.networks import Encoder, Preprocessing, encoder_identity, load_encoder
from pipeline.errors import ConfigError
from train.config.settings import Mode, TrainConfig
from train.data.bad_shards import read_usable_rows
from train.data.batches import AugmentedImages, Batch, Batches, CachedEmbeddings, Inputs
from train.data.corrections import LossTerms, loss_terms
from train.data.device import DecodedOnDevice
from train.data.embeddings import MappedEmbeddings, open_embeddings
from train.data.images import open_cache
from train.data.mixture import check_repetition, mix
from train.data.order import BatchOrder, Rank
from train.data.rows import TrainRows
from train.data.views import ViewedEmbeddings, ViewMaker
from train.distributed.fsdp import shard_backbone
from train.distributed.world import World
from train.loop.optim import average_of_weights, optimizer_of, trained_part
from train.model.detector import DetectorModel, Segment, build_detector

_MAX_WORKERS = 8  # decoding processes by default: what feeds one GPU
_SHUFFLE_WINDOW = 16  # shards shuffled together; more mixes, fewer reads in order


@dataclass(frozen=True)
class Job:
    """What the loop works with. The modules change as it runs, all else stays."""

    config: Config
    train_config: TrainConfig
    dataset: DatasetInfo
    generation: Generation
    segments: tuple[Segment, ...]  # the last is what is trained on now
    world: World
    rows: TrainRows
    terms: LossTerms
    detector: DetectorModel
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
    def is_sharded(self) -> bool:
        """Whether the backbone's weights are spread over the processes (train.sharding)."""
        return self.train_config.parallel == "fsdp" and self.world.size > 1

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
    *,
    segments: tuple[Segment, ...] = (),
    first_step: int = 0,
) -> Job:
    """Reads the rows, builds detector and optimizer. Raises ConfigError where they do not fit.

    segments: of a run that goes on at first_step; default all steps on the generation.
    """
    check_processes(train_config, world)
    check_sharding(train_config)
    needs_embeddings = train_config.mode == "head" or train_config.head_steps > 0
    rows, segments = read_usable_rows(
        config.output.path,
        generation,
        config.target_names,
        segments=segments or (Segment(generation=generation.number, first_step=0),),
        first_step=first_step,
        policy=train_config.on_bad_shard,
        needs_images=train_config.mode == "finetune" or train_config.views > 1,
        embedding_dim=dataset.embedding_dim if needs_embeddings else None,
        world=world,
    )
    terms = terms_of(rows, train_config)
    check_repetition(train_config, mix(rows, train_config.mixture))
    torch.manual_seed(train_config.seed)
    encoder = load_encoder(config.encoder)
    if needs_embeddings:
        check_embeddings(config, dataset, encoder)
    detector = build_detector(
        encoder,
        len(config.targets),
        hidden_dim=train_config.hidden_dim,
        dropout=train_config.dropout,
    )
    detector.to(world.device).to(memory_format=torch.channels_last)
    check_image_sizes(detector, train_config)
    if train_config.parallel == "fsdp" and world.size > 1:
        shard_backbone(detector.encoder.backbone, world)
    return Job(
        config,
        train_config,
        dataset,
        generation,
        segments,
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
        rows,
        train_config.correction,
        mixture=mix(rows, train_config.mixture) if train_config.mixture else None,
    )


def open_stream(job: Job, mode: Mode, steps: range, *, image_size: int) -> Iterator[Batch]:
    """This process's batches of `steps`: embeddings for the head, images for the backbone."""
    train_config, rows = job.train_config, job.rows
    root = job.config.output.path
    if mode == "head":
        cache = open_cache(train_config.cache_dir, train_config.cache_gb)
        embedding_ND = open_embeddings(root, rows, job.dataset.embedding_dim, cache)
        return embedding_batches(job, embedding_ND).stream(steps, workers=0)
    images = AugmentedImages(
        root,
        rows,
        preprocessing=_at_size(job.detector.encoder.preprocessing, image_size),
        strength=train_config.augment,
        seed=train_config.seed,
        cache_dir=train_config.cache_dir,
        cache_gb=train_config.cache_gb,
        on_bad_shard=train_config.on_bad_shard,
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


def embedding_batches(job: Job, embedding_ND: NDArray[np.float16] | MappedEmbeddings) -> Batches:
    """Batches of the embeddings of the job's rows."""
    inputs: Inputs = CachedEmbeddings(embedding_ND)
    if job.view_VPD is not None:
        inputs = ViewedEmbeddings(
            embedding_ND, job.view_VPD, positives=job.rows.positives, seed=job.train_config.seed
        )
    return Batches(job.rows, job.terms, _order_of(job), inputs)


def _order_of(job: Job) -> BatchOrder:
    train_config = job.train_config
    mixture = mix(job.rows, train_config.mixture)
    return BatchOrder(
        [share.stream for share in mixture.positives],
        [share.stream for share in mixture.negatives],
        num_positives=train_config.num_positives,
        batch_size=train_config.batch_size,
        window=_SHUFFLE_WINDOW,
        seed=train_config.seed,
        first_step=job.segments[-1].first_step,
        part=Rank(job.world.rank, job.world.size),
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


def check_processes(train_config: TrainConfig, world: World) -> None:
    """Raises ConfigError where they cannot share a batch, or their devices cannot compute so."""
    if train_config.batch_size % world.size:
        raise ConfigError(
            f"train.batch_size: {train_config.batch_size} must be a multiple of the {world.size} "
            "processes, which share every batch"
        )
    accumulate, num_samples = train_config.accumulate, train_config.batch_size // world.size
    if accumulate > num_samples:
        raise ConfigError(
            f"train.accumulate: {accumulate} parts of {num_samples} samples, which a process has "
            f"of train.batch_size {train_config.batch_size}"
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
            f"train.decode: cuda, but training runs on the {world.device.type}, where "
            "train.decode: cpu is what there is"
        )


def check_sharding(train_config: TrainConfig) -> None:
    """Raises ConfigError where `parallel: fsdp` does not go with another setting."""
    if train_config.parallel != "fsdp":
        return
    refused = {
        "mode: head, which trains no backbone": train_config.mode == "head",
        "compile": train_config.compile,
        "ema_decay": train_config.ema_decay is not None,
        "early_stopping": train_config.early_stopping is not None,
        "amp: fp16 (bf16 does)": train_config.amp == "fp16",
    }
    for what, is_set in refused.items():
        if is_set:
            raise ConfigError(f"train.parallel: fsdp does not go with {what}; ddp does")


def check_image_sizes(detector: DetectorModel, train_config: TrainConfig) -> None:
    """Some networks, most transformers among them, take images of one size only."""
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
    """A head fits the embeddings of one encoder only: those that the data set holds."""
    seen = encoder_identity(encoder, config.encoder)
    if not dataset.encoder.startswith(f"{seen}:"):
        raise ConfigError(
            f"encoder: {seen}, but the embeddings of {config.output.path} come from "
            f"{dataset.encoder}. A head is trained on the encoder of the data set; "
            "train.mode: finetune with train.head_steps: 0 takes any."
        )
    assert encoder.embedding_dim == dataset.embedding_dim
