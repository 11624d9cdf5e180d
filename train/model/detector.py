"""Backbone and head, one sigmoid per target, and the files of a trained model.

Shapes: B batch, C H W image, D embedding, K targets.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.encoders.networks import Encoder, load_encoder
from pipeline.errors import ConfigError, InfinegError
from train.model.groups import open_last_groups
from train.model.info import ModelInfo, read_model_info, write_model_info
from train.model.tensors import load_into, read_tensors, write_tensors


class Standardize(nn.Module):
    """Each feature to mean 0 and standard deviation 1 over the photographs trained on."""

    mean_D: Tensor
    sd_D: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(dim))
        self.register_buffer("sd_D", torch.ones(dim))

    def set(self, mean_D: Tensor, sd_D: Tensor) -> None:
        self.mean_D.copy_(mean_D)
        self.sd_D.copy_(sd_D)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        return (embedding_BD - self.mean_D) / self.sd_D


class Head(nn.Module):
    """embedding_BD, L2-normalised -> logits_BK: the mean of the heads of all folds.

    Each of them has one hidden layer or (hidden_dim 0) none. Before them each feature is
    standardised, since they differ by orders of magnitude and a linear layer learns from all of
    them when they do not; then LayerNorm takes out how strongly an image excites them together.
    Models before 0.3 have only the LayerNorm.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_targets: int,
        *,
        hidden_dim: int,
        dropout: float,
        num_folds: int = 1,
        is_standardized: bool = True,
    ) -> None:
        super().__init__()
        self.num_targets = num_targets
        self.standardize = Standardize(embedding_dim) if is_standardized else nn.Identity()
        # Without weights, which would carry what one head learns to the others.
        self.norm = nn.LayerNorm(embedding_dim, elementwise_affine=not is_standardized)
        self.folds = nn.ModuleList(
            nn.Sequential(
                *([nn.Linear(embedding_dim, hidden_dim), nn.GELU()] if hidden_dim else []),
                nn.Dropout(dropout if hidden_dim else 0.0),
                nn.Linear(hidden_dim or embedding_dim, num_targets),
            )
            for _ in range(num_folds)
        )

    def forward(self, embedding_BD: Tensor, *, by_fold: bool = False) -> Tensor:
        """logits_BK; by_fold: logits_BFK, of the head of each fold."""
        features_BD = self.norm(self.standardize(embedding_BD))
        logits_BFK = torch.stack([head(features_BD) for head in self.folds], dim=1)
        return logits_BFK if by_fold else logits_BFK.mean(dim=1)

    def held_out_logits(self, embedding_BD: Tensor, fold_B: NDArray[np.int8]) -> Tensor:
        """logits_BK of rows of the data set, each by the head that is not trained on its fold."""
        features_BD = self.norm(self.standardize(embedding_BD))
        logits_BK: Tensor = features_BD.new_empty(len(fold_B), self.num_targets)
        for number in np.unique(fold_B).tolist():
            is_of_fold_B = torch.from_numpy(fold_B == number).to(features_BD.device)
            logits_BK[is_of_fold_B] = self.folds[number](features_BD[is_of_fold_B])
        return logits_BK


class DetectorModel(nn.Module):
    """pixels_BCHW uint8 -> logits_BK, one per target, before any calibration."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return self.head_logits(self.encoder(pixels_BCHW))

    def head_logits(self, embedding_BD: Tensor) -> Tensor:
        """logits_BK float32 of embeddings, as the sidecars of a data set hold them."""
        logits_BK: Tensor = self.head(embedding_BD)
        return logits_BK.float()

    def train_backbone(self, num_groups: int) -> None:
        """Unfreezes its last groups, except the statistics of batch norms.

        Those would depend on the number of processes and on the share of positives in a batch.
        """
        open_last_groups(self.encoder.backbone, num_groups)
        self.train()
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def build_detector(
    encoder: Encoder,
    num_targets: int,
    *,
    hidden_dim: int,
    dropout: float,
    num_folds: int = 1,
    is_standardized: bool = True,
) -> DetectorModel:
    """A detector with a new head, whose weights come from torch's global generator."""
    head = Head(
        encoder.embedding_dim,
        num_targets,
        hidden_dim=hidden_dim,
        dropout=dropout,
        num_folds=num_folds,
        is_standardized=is_standardized,
    )
    return DetectorModel(encoder, head)


def save_model(
    run_dir: str | os.PathLike[str], weights: Mapping[str, Tensor], info: ModelInfo
) -> None:
    """Writes `model.safetensors`, then `model.json`, which marks the run as finished."""
    sha256 = write_tensors(Path(run_dir) / "model.safetensors", weights)
    write_model_info(run_dir, info.model_copy(update={"weights_sha256": sha256}))


def load_model(run_dir: str | os.PathLike[str]) -> tuple[DetectorModel, ModelInfo]:
    """A trained detector in eval mode on the CPU; needs neither network nor weight package."""
    info = read_model_info(run_dir)
    if info is None:
        raise ConfigError(
            f"{run_dir}: no finished run there (no model.json); `infineg train` makes one"
        )
    with torch.random.fork_rng(devices=[]):  # the random weights are overwritten at once
        encoder = load_encoder(info.encoder, pretrained=False)
        detector = build_detector(
            encoder,
            len(info.targets),
            hidden_dim=info.hidden_dim,
            dropout=info.dropout,
            num_folds=info.folds,
            is_standardized=info.is_standardized,
        )
    if encoder.preprocessing != info.preprocessing:
        raise InfinegError(
            f"{run_dir}: trained with {info.preprocessing}, but {info.encoder.name} now has "
            f"{encoder.preprocessing}; install the versions that it was trained with"
        )
    path = Path(run_dir) / "model.safetensors"
    tensors = read_tensors(path, sha256=info.weights_sha256)
    load_into(detector, {_present_name(name): tensor for name, tensor in tensors.items()}, path)
    return detector.eval(), info


def _present_name(name: str) -> str:
    """Of a weight of a head; before 0.3 a head was one list of layers, LayerNorm first."""
    found = re.fullmatch(r"head\.layers\.(\d+)\.(.*)", name)
    if found is None:
        return name
    number = int(found[1])
    return f"head.norm.{found[2]}" if number == 0 else f"head.folds.0.{number - 1}.{found[2]}"
