"""Label smoothing, mixup and cutmix: inputs are blended, and weights stay exact."""

from typing import Any

import numpy as np
import pytest
import torch
from test_losses import ALONE, batch_of, column
from torch.nn.functional import binary_cross_entropy_with_logits

from train.config import Regularization, TrainConfig
from train.loop.step import _Labels, _mix
from train.loss.mixup import Mixing, draw_mixing
from train.loss.objective import batch_loss

MIXUP, CUTMIX = Regularization(mixup=0.4), Regularization(cutmix=1.0)
PICTURES = torch.randint(
    0, 256, (6, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def config_of(**regularization: Any) -> TrainConfig:
    return TrainConfig(
        run="r", mode="finetune", batch_size=4, positive_share=0.25, regularization=regularization
    )


def test_smoothed_loss_is_cross_entropy_with_smoothed_targets_and_the_labels_weights() -> None:
    logits, targets, weight = column(2.0, -1.0, 0.5), column(1, 0, 0), column(1, 0.5, 1.5)
    train_config = TrainConfig(
        run="r", batch_size=3, positive_share=0.34, regularization={"label_smoothing": 0.2}
    )
    loss = batch_loss(logits, batch_of(targets, torch.ones(3)), weight, train_config, ALONE)
    wanted = binary_cross_entropy_with_logits(logits, column(0.9, 0.1, 0.1), weight)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_mixup_is_the_line_between_a_picture_and_its_partner() -> None:
    mixing = draw_mixing(MIXUP, PICTURES, seed=(0, 3), rank=0)
    assert mixing.box is None
    assert 0 < mixing.share < 1
    wanted = mixing.share * PICTURES.float() + (1 - mixing.share) * PICTURES[
        mixing.partner_B
    ].float()  # fmt: skip
    mixed = mixing.blend(PICTURES)
    assert mixed.dtype == torch.uint8
    assert (mixed.float() - wanted).abs().max() <= 0.51
    assert sorted(mixing.partner_B.tolist()) == list(range(6)), "a permutation keeps the weights"


def test_the_share_of_cutmix_is_what_is_left_of_the_picture() -> None:
    shares = []
    for step in range(50):
        mixing = draw_mixing(CUTMIX, PICTURES, seed=(0, step), rank=0)
        partner = (mixing.partner_B != torch.arange(6)).nonzero()[0, 0]
        taken = mixing.blend(PICTURES)[partner] != PICTURES[partner]
        # Of 600 pixels a few are of the partner's very colour.
        assert 1 - taken.any(0).float().mean().item() == pytest.approx(mixing.share, abs=0.01)
        shares.append(mixing.share)
    assert min(shares) < 0.2
    assert max(shares) > 0.9


def test_mixing_is_a_function_of_the_step_with_one_share_for_all_ranks() -> None:
    both = Regularization(mixup=0.4, cutmix=1.0)
    draws = [draw_mixing(both, PICTURES, seed=(0, step), rank=0) for step in range(20)]
    again = [draw_mixing(both, PICTURES, seed=(0, step), rank=1) for step in range(20)]
    assert [(a.share, a.box) for a in draws if a] == [(b.share, b.box) for b in again if b]
    assert any(not torch.equal(a.partner_B, b.partner_B) for a, b in zip(draws, again, strict=True))
    assert {mixing.box is None for mixing in draws} == {True, False}


def test_embeddings_are_mixed_but_not_cut() -> None:
    embedding_BD = torch.randn(6, 8)
    assert draw_mixing(CUTMIX, embedding_BD, seed=(0, 0), rank=0) is None
    mixing = draw_mixing(MIXUP, embedding_BD, seed=(0, 0), rank=0)
    assert mixing.blend(embedding_BD).shape == (6, 8)


class StepJob:
    """The attributes of a job that mixing reads."""

    world = ALONE

    def __init__(self, train_config: TrainConfig) -> None:
        self.train_config = train_config


def mixed_labels(train_config: TrainConfig, labels: _Labels, step: int) -> list[_Labels]:
    job: Any = StepJob(train_config)
    return _mix(job, labels, step)[1]


def test_mixing_leaves_each_label_its_weight_and_offset() -> None:
    """A batch's loss is linear in weights, so that mixed parts must add up label by label."""
    targets, weight = column(1, 0, 0, 0), column(1, 0.5, 0.5, 2)
    offset_B = torch.tensor([0.3, -1.0, 0.0, 2.0])
    batch = batch_of(targets, torch.ones(4), offset_B)._replace(inputs=torch.randn(4, 8))
    for step in range(10):
        parts = mixed_labels(
            config_of(mixup=0.5), _Labels(1.0, batch, weight, torch.ones(4, 1)), step
        )
        assert sum(part.share for part in parts) == pytest.approx(1)
        total = {}
        for share, part, weight_BK, _ in parts:
            for offset, each in zip(part.offset_B.tolist(), weight_BK[:, 0].tolist(), strict=True):
                total[offset] = total.get(offset, 0) + share * each
        assert list(total.values()) == pytest.approx([total[k] for k in total])
        wanted = dict(zip(offset_B.tolist(), weight[:, 0].tolist(), strict=True))
        assert total == pytest.approx(wanted)


def test_mixed_loss_is_the_one_of_the_formula() -> None:
    targets, weight = column(1, 0, 0, 0), column(1, 0.5, 0.5, 2)
    offset_B, logits = torch.tensor([0.3, -1.0, 0.0, 2.0]), column(2.0, -1.0, 0.5, 0.1)
    batch = batch_of(targets, torch.ones(4), offset_B)._replace(inputs=torch.randn(4, 8))
    train_config = config_of(mixup=0.5)
    parts = mixed_labels(train_config, _Labels(1.0, batch, weight, torch.ones(4, 1)), 2)
    loss = sum(
        share * batch_loss(logits, part, weight_BK, train_config, ALONE)
        for share, part, weight_BK, _ in parts
    )
    mixing = draw_mixing(Regularization(mixup=0.5), batch.inputs, seed=(0, 2, 1), rank=0)
    f, y, w, o = (each.numpy() for each in (logits[:, 0], targets[:, 0], weight[:, 0], offset_B))
    p = mixing.partner_B.numpy()

    def cross_entropy(logit: np.ndarray, label: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, np.where(label == 1, -logit, logit))

    wanted = mixing.share * w * cross_entropy(f - o, y)
    wanted += (1 - mixing.share) * w[p] * cross_entropy(f - o[p], y[p])
    assert float(loss) == pytest.approx(wanted.sum() / 4, rel=1e-5)


def test_a_box_at_the_edge_of_the_picture_stays_within_it() -> None:
    mixing = Mixing(0.5, torch.tensor([1, 0]), (slice(0, 5), slice(25, 30)))
    mixed = mixing.blend(PICTURES[:2])
    assert torch.equal(mixed[0, :, :5, 25:], PICTURES[1, :, :5, 25:])
    assert torch.equal(mixed[0, :, 5:], PICTURES[0, :, 5:])
