"""Mixup and cutmix that keep the importance weights exact.

Sample i is blended with its partner p(i), p a random permutation of this process's batch:

    mixup    x = share * x_i + (1 - share) * x_p(i)      Zhang et al. 2018 (arXiv:1710.09412)
    cutmix   a box of x_i, 1 - share of its area, comes from x_p(i)    Yun et al. 2019 (1905.04899)

and with weights w, labels y and offsets o the loss of a batch is, target by target,

    sum_i share * w_i * l(f(x) - o_i, y_i)  +  (1 - share) * w_p(i) * l(f(x) - o_p(i), y_p(i))

Labels are never averaged: each keeps the weight and the offset of its sample. `share` is the same
for a whole global batch and p is a permutation, so that the weight of a sample over the batch is
share * w + (1 - share) * w = w: the sum of the weights, and with it the prior trained on, is the
same as without mixing. (Mixed labels with the weight of the first sample would move weight between
labels.) The weights do not correct which partners a sample meets: partners come at the rate of the
batch, not of the stream. Weights of w_i * w_p(i) would, at the price of the variance of a product.

Shapes: B samples of this process, D embedding, C H W image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.config import Regularization


@dataclass(frozen=True)
class Mixing:
    """How the samples of one batch are blended. `box`: rows and columns; None is mixup."""

    share: float  # of the sample itself
    partner_B: Tensor
    box: tuple[slice, slice] | None = None

    def blend(self, inputs: Tensor) -> Tensor:
        """Blends embedding_BD, or pixels_BCHW uint8, which stay uint8."""
        partners = inputs[self.partner_B]
        if self.box is not None:
            mixed = inputs.clone()
            mixed[..., *self.box] = partners[..., *self.box]
            return mixed
        mixed = torch.lerp(partners.float(), inputs.float(), self.share)
        return mixed if inputs.is_floating_point() else mixed.round().to(inputs.dtype)


def draw_mixing(
    regularization: Regularization, inputs: Tensor, *, seed: Sequence[int], rank: int
) -> Mixing | None:
    """The mixing of a step, None if it is off; a pure function of seed, shape and rank."""
    rng = np.random.default_rng(seed)  # the same on every rank, so that all draw the same share
    mixup, cutmix = regularization.mixup, regularization.cutmix
    takes_cutmix = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if takes_cutmix else mixup
    if alpha == 0 or (takes_cutmix and inputs.ndim == 2):
        return None
    share, box = float(rng.beta(alpha, alpha)), None
    if takes_cutmix:
        height, width = inputs.shape[2:]
        box = _random_box(height, width, area=1 - share, rng=rng)
        rows, columns = box
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    partner_B = np.random.default_rng((*seed, rank)).permutation(len(inputs))
    return Mixing(share, torch.from_numpy(partner_B).to(inputs.device), box)


def _random_box(
    height: int, width: int, *, area: float, rng: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a box of the image's shape around a random centre, clipped to it."""
    half_height, half_width = (side * area**0.5 / 2 for side in (height, width))
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    rows = slice(round(max(y - half_height, 0)), round(min(y + half_height, height)))
    columns = slice(round(max(x - half_width, 0)), round(min(x + half_width, width)))
    return rows, columns
