"""What a step minimises: the loss of a batch, as the settings compose it.

Shapes: B samples of this process, K targets.
"""

import torch
from torch import Tensor

from train.config import TrainConfig
from train.data.batches import Batch
from train.distributed.world import World
from train.loss.losses import (
    ImportanceWeights,
    cross_entropy,
    focal_loss,
    hardest_negatives,
    importance_weights,
)


def batch_weights(batch: Batch, train_config: TrainConfig, world: World) -> ImportanceWeights:
    """Of this process's samples, normalised over the global batch."""
    return importance_weights(
        batch.targets_BK,
        batch.importance_B,
        max_weight=train_config.max_weight,
        reduce_sum=world.all_reduce_sum,
    )


def batch_loss(
    logits_BK: Tensor, batch: Batch, weight_BK: Tensor, train_config: TrainConfig, world: World
) -> Tensor:
    """This process's share of the loss of the global batch.

    That is the mean over its samples and the K targets of weight * loss of logit - offset, times
    the number of processes, since DistributedDataParallel averages their gradients: the average
    is then the gradient of the loss of one process with the whole batch. Shares of parts of the
    batch add up to that of the batch, except with ohem, which looks at all of it.
    """
    targets_BK = batch.targets_BK
    shifted_BK = logits_BK.float() - batch.offset_B[:, None]
    loss_BK = _sample_loss(shifted_BK, targets_BK, train_config)
    if train_config.loss == "ohem":
        weight_BK = weight_BK * hardest_negatives(
            loss_BK, targets_BK, weight_BK, share=train_config.ohem_share, gather=world.gather
        )
    scale = world.size / (train_config.batch_size * targets_BK.shape[1])
    return (weight_BK * loss_BK).sum() * scale


def _sample_loss(logits_BK: Tensor, targets_BK: Tensor, train_config: TrainConfig) -> Tensor:
    """With labels smoothed by e, that of the label and of its opposite, 1 - e/2 to e/2.

    Of cross-entropy that is the loss of targets e/2 and 1 - e/2 (Szegedy et al. 2016,
    arXiv:1512.00567, two classes); weights stay those of the label.
    """
    loss_BK = _plain_loss(logits_BK, targets_BK, train_config)
    flipped = train_config.regularization.label_smoothing / 2
    if flipped == 0:
        return loss_BK
    return torch.lerp(loss_BK, _plain_loss(logits_BK, 1 - targets_BK, train_config), flipped)


def _plain_loss(logits_BK: Tensor, targets_BK: Tensor, train_config: TrainConfig) -> Tensor:
    if train_config.loss != "focal":
        return cross_entropy(logits_BK, targets_BK)
    return focal_loss(
        logits_BK, targets_BK, gamma=train_config.focal_gamma, alpha=train_config.focal_alpha
    )
