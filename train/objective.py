"""What a step minimises: the loss of a batch, as the settings compose it.

Shapes: B samples of this process, K targets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from train.config import TrainConfig
from train.data import Batch
from train.distributed import World
from train.hard_negatives import hardest_negatives
from train.losses import cross_entropy, focal_loss, importance_weights
from train.unlabelled import nonnegative_risk


class BatchLoss(NamedTuple):
    """This process's share of the loss, and the share of weight that the clip took away."""

    loss: Tensor
    clipped_mass: Tensor


def batch_loss(
    logits_BK: Tensor, batch: Batch, train_config: TrainConfig, world: World
) -> BatchLoss:
    """Mean over the global batch and the K targets of weight * loss of logit - offset.

    Scaled by the number of processes, since DistributedDataParallel averages their gradients:
    the average is then the gradient of the loss of one process with the whole batch.
    """
    targets_BK = batch.targets_BK
    shifted_BK = logits_BK.float() - batch.offset_B[:, None]
    weights = importance_weights(
        targets_BK,
        batch.importance_B,
        max_weight=train_config.max_weight,
        reduce_sum=world.all_reduce_sum,
    )
    weight_BK = weights.weight_BK
    loss_BK = _sample_loss(shifted_BK, targets_BK, train_config)
    if train_config.loss == "ohem":
        weight_BK = weight_BK * hardest_negatives(
            loss_BK, targets_BK, weight_BK, share=train_config.ohem_share, gather=world.gather
        )
    risk_BK = weight_BK * loss_BK
    if train_config.unknown_prior is not None:
        risk_BK = nonnegative_risk(
            loss_BK,
            _sample_loss(shifted_BK, torch.zeros_like(targets_BK), train_config),
            targets_BK,
            weight_BK,
            is_unknown_B=batch.is_unknown_B,
            hidden_weight_B=batch.hidden_weight_B,
            offset_B=batch.offset_B,
            prior=train_config.unknown_prior,
            reduce_sum=world.all_reduce_sum,
        )
    scale = world.size / (train_config.batch_size * targets_BK.shape[1])
    return BatchLoss(risk_BK.sum() * scale, weights.clipped_mass)


def _sample_loss(logits_BK: Tensor, targets_BK: Tensor, train_config: TrainConfig) -> Tensor:
    if train_config.loss != "focal":
        return cross_entropy(logits_BK, targets_BK)
    return focal_loss(
        logits_BK, targets_BK, gamma=train_config.focal_gamma, alpha=train_config.focal_alpha
    )
