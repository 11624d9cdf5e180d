"""What of a detector learns, from which step on and how fast, as the settings say."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from train.config.settings import TrainConfig
from train.model.detector import Detector
from train.model.groups import Stage, backbone_groups
from train.optim import Schedule, average_of, make_optimizer


def trained_part(detector: Detector, train_config: TrainConfig) -> nn.Module:
    """The module that learns, and that checkpoints carry."""
    return detector.head if train_config.mode == "head" else detector


def optimizer_of(detector: Detector, train_config: TrainConfig) -> torch.optim.AdamW:
    warmup, last = train_config.warmup_steps, train_config.steps
    parts: list[tuple[Iterable[nn.Parameter], Schedule]] = [
        (detector.head.parameters(), Schedule(train_config.learning_rate, 0, warmup, last))
    ]
    if train_config.mode == "finetune":
        groups = backbone_groups(detector.encoder.backbone)
        opening_steps = _opening_steps(detector, train_config)
        for index, (group, first) in enumerate(zip(groups, opening_steps, strict=True)):
            num_behind = len(groups) - 1 - index
            rate = train_config.backbone_learning_rate
            rate *= train_config.finetuning.layer_decay**num_behind
            parts.append((group, Schedule(rate, first, warmup, last)))
    return make_optimizer(parts, weight_decay=train_config.weight_decay)


def _opening_steps(detector: Detector, train_config: TrainConfig) -> list[int]:
    return train_config.finetuning.opening_steps(
        len(backbone_groups(detector.encoder.backbone)),
        first=train_config.head_steps,
        never=train_config.steps,
    )


def average_of_weights(detector: Detector, train_config: TrainConfig) -> AveragedModel | None:
    if train_config.ema_decay is None:
        return None
    return average_of(trained_part(detector, train_config), train_config.ema_decay)


def stages_of(detector: Detector, train_config: TrainConfig) -> list[Stage]:
    """Of the steps on images."""
    return train_config.finetuning.stages(
        _opening_steps(detector, train_config),
        range(train_config.head_steps, train_config.steps),
        image_size=detector.encoder.preprocessing.image_size,
    )
