"""This process's batches of a phase: embeddings for the head, images for the backbone."""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from train.config import Mode
from train.data.batches import AugmentedImages, Batch, Batches, CachedEmbeddings, Inputs
from train.data.device import DecodedOnDevice
from train.data.embeddings import MappedEmbeddings
from train.data.order import BatchOrder
from train.data.views import ViewedEmbeddings
from train.loop.state import TrainState

_MAX_WORKERS = 8  # decoding processes by default: enough to feed one GPU
_SHUFFLE_WINDOW = 16  # shards shuffled together; more mixes better but reads less in order


def open_stream(state: TrainState, mode: Mode, steps: range, *, image_size: int) -> Iterator[Batch]:
    """The batches of `steps`, in order."""
    if mode == "finetune":
        return _stream_images(state, steps, image_size)
    assert state.embedding_ND is not None
    return embedding_batches(state, state.embedding_ND).stream(steps, workers=0)


def embedding_batches(
    state: TrainState, embedding_ND: NDArray[np.float16] | MappedEmbeddings
) -> Batches:
    """Batches of the embeddings of the state's rows."""
    inputs: Inputs = CachedEmbeddings(embedding_ND)
    if state.view_VPD is not None:
        inputs = ViewedEmbeddings(
            embedding_ND,
            state.view_VPD,
            positives=state.rows.positives,
            seed=state.train_config.seed,
        )
    return Batches(state.rows, state.terms, _order_of(state), inputs)


def _stream_images(state: TrainState, steps: range, image_size: int) -> Iterator[Batch]:
    train_config, device = state.train_config, state.world.device
    preprocessing = state.detector.encoder.preprocessing
    resize_size = round(preprocessing.resize_size * (image_size / preprocessing.image_size))
    images = AugmentedImages(
        state.config.output.path,
        state.rows,
        preprocessing=replace(preprocessing, image_size=image_size, resize_size=resize_size),
        strength=train_config.augment,
        seed=train_config.seed,
        cache_dir=train_config.cache_dir,
        cache_gb=train_config.cache_gb,
        on_bad_shard=train_config.on_bad_shard,
    )
    if train_config.decode == "cuda":
        decoded = DecodedOnDevice(images, device)
        return Batches(state.rows, state.terms, _order_of(state), decoded).stream(steps, workers=0)
    workers = train_config.workers
    if workers is None:
        workers = min(os.cpu_count() or 1, _MAX_WORKERS)
    return Batches(state.rows, state.terms, _order_of(state), images).stream(
        steps, workers=workers, kind=train_config.loader, pin=device.type == "cuda"
    )


def _order_of(state: TrainState) -> BatchOrder:
    train_config = state.train_config
    return BatchOrder(
        [share.stream for share in state.mixture.positives],
        [share.stream for share in state.mixture.negatives],
        num_positives=train_config.num_positives,
        batch_size=train_config.batch_size,
        window=_SHUFFLE_WINDOW,
        seed=train_config.seed,
        first_step=state.segments[-1].first_step,
        rank=state.world.rank,
        world_size=state.world.size,
    )
