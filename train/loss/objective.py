"""The loss of a batch, composed from the settings.

Shapes: B samples of this process, K targets.
"""

import torch
from torch import Tensor

from train.config import TrainConfig
from train.data.batches import Batch
from train.distributed.world import World
from train.loss.losses import cross_entropy, focal_loss, hardest_negatives


def batch_loss(
    logits_BK: Tensor, batch: Batch, weight_BK: Tensor, train_config: TrainConfig, world: World
) -> Tensor:
    """This process's share of the loss of the global batch.

    The loss of the global batch is the mean over its samples and the K targets of weight *
    loss(logit - offset). This process's share is multiplied by the number of processes, since
    DistributedDataParallel averages their gradients. The shares of parts of a batch add up to that
    of the batch, except with ohem, which ranks the whole batch.
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
    """loss_BK; label smoothing e blends (1 - e/2) of the label's loss with e/2 of the opposite's.

    For cross-entropy that is the loss of targets e/2 and 1 - e/2 (Szegedy et al. 2016,
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
