"""What is refused before the first step."""

import os
import shutil

import torch

from pipeline.config.schema import Config
from pipeline.dataset.metadata import DatasetInfo
from pipeline.encoders.networks import Encoder, encoder_identity
from pipeline.errors import ConfigError
from train.config.settings import TrainConfig
from train.distributed.world import World
from train.model.detector import Detector


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


def check_image_sizes(detector: Detector, train_config: TrainConfig) -> None:
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
