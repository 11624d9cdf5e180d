"""Weights and losses of a batch, by hand and against the reference implementations."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from train.config import TrainConfig
from train.data.batches import Batch
from train.distributed.world import World
from train.loss.losses import cross_entropy, focal_loss, hardest_negatives, importance_weights
from train.loss.objective import batch_loss

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def batch_of(targets_BK: Tensor, importance_B: Tensor, offset_B: Tensor | None = None) -> Batch:
    zeros_B = torch.zeros(len(targets_BK))
    offset_B = zeros_B if offset_B is None else offset_B
    return Batch(zeros_B, targets_BK, importance_B, offset_B, zeros_B, zeros_B)


def test_weights_are_self_normalised_and_clipped() -> None:
    targets_BK = torch.tensor([[1.0], [0.0], [0.0], [0.0], [0.0]])
    inverse_B = torch.tensor([1.0, 1.0, 1.0, 1.0, 5.0])
    plain = importance_weights(targets_BK, inverse_B, max_weight=10, reduce_sum=lambda x: x)
    assert plain.weight_BK[:, 0].tolist() == pytest.approx([1, 0.5, 0.5, 0.5, 2.5])
    assert plain.clipped_mass.item() == 0
    clipped = importance_weights(targets_BK, inverse_B, max_weight=1.5, reduce_sum=lambda x: x)
    # 2.5 becomes 1.5: a quarter of the mass 4 is lost, then the mean is brought back to 1.
    assert clipped.clipped_mass.item() == pytest.approx(0.25)
    assert clipped.weight_BK[:, 0].tolist() == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3, 2])


def test_a_positive_of_one_target_is_a_negative_of_the_other() -> None:
    targets_BK = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    weights = importance_weights(
        targets_BK, torch.tensor([1.0, 1.0, 3.0]), max_weight=10, reduce_sum=lambda x: x
    )
    assert torch.allclose(weights.weight_BK, torch.tensor([[1, 0.5], [0.5, 1], [1.5, 1.5]]))


def test_loss_is_that_of_a_hand_computation() -> None:
    train_config = TrainConfig(run="r", batch_size=3, positive_share=0.34)
    batch = batch_of(column(1, 0, 0), torch.tensor([1.0, 1, 3]), torch.tensor([0.5, 0.5, -1]))
    weight_BK, _ = importance_weights(
        batch.targets_BK, batch.importance_B, max_weight=20, reduce_sum=lambda tensor: tensor
    )
    loss = batch_loss(column(2.5, -0.5, 0), batch, weight_BK, train_config, ALONE)
    # softplus(-2) + 0.5 * softplus(-1) + 1.5 * softplus(1), over 3 samples.
    wanted = (0.126928 + 0.5 * 0.313262 + 1.5 * 1.313262) / 3
    assert loss.item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_loss_is_that_of_torchvision(gamma: float, alpha: float | None) -> None:
    random = torch.Generator().manual_seed(0)
    logits_BK = (4 * torch.randn(200, 3, generator=random)).double().requires_grad_()
    targets_BK = torch.randint(2, (200, 3), generator=random).double()
    ours = focal_loss(logits_BK, targets_BK, gamma=gamma, alpha=alpha)
    reference = sigmoid_focal_loss(
        logits_BK, targets_BK, gamma=gamma, alpha=-1 if alpha is None else alpha
    )
    torch.testing.assert_close(ours, reference)
    gradients = [torch.autograd.grad(loss.sum(), logits_BK)[0] for loss in (ours, reference)]
    torch.testing.assert_close(*gradients)


def test_focal_loss_of_gamma_zero_is_cross_entropy() -> None:
    logits_BK, targets_BK = column(-3, 0.5, 2), column(1, 0, 1)
    torch.testing.assert_close(
        focal_loss(logits_BK, targets_BK, gamma=0.0, alpha=None),
        cross_entropy(logits_BK, targets_BK),
    )


def test_focal_gradient_stays_finite_where_the_answer_is_sure() -> None:
    logits_BK = column(200, -200, 200, -200).requires_grad_()
    loss_BK = focal_loss(logits_BK, column(1, 1, 0, 0), gamma=0.5, alpha=None)
    (gradient_BK,) = torch.autograd.grad(loss_BK.sum(), logits_BK)
    assert gradient_BK[:, 0].tolist() == pytest.approx([0, -1, 1, 0])


def keep(loss: Tensor, targets: Tensor, weight: Tensor, share: float) -> list[float]:
    kept_BK = hardest_negatives(loss, targets, weight, share=share, gather=lambda x: x)
    return kept_BK[:, 0].tolist()


def test_hardest_negatives_count_and_all_positives() -> None:
    loss, targets = column(0.1, 4, 3, 2, 1), column(1, 0, 0, 0, 0)
    ones = torch.ones(5, 1)
    assert keep(loss, targets, ones, 0.5) == [1, 1, 1, 0, 0]
    assert keep(loss, targets, ones, 1.0) == [1, 1, 1, 1, 1]


def test_hardest_share_is_one_of_weight_and_its_limit_counts_in_part() -> None:
    """Half of the weight 8 is 4: all of the first, and 3 of the 6 that the second weighs."""
    loss, targets, weight = column(4, 3, 2), column(0, 0, 0), column(1, 6, 1)
    assert keep(loss, targets, weight, 0.5) == pytest.approx([1, 0.5, 0])


def test_ties_share_what_is_left_of_the_hardest_share() -> None:
    loss, targets, weight = column(4, 2, 2, 2, 1), torch.zeros(5, 1), column(1, 1, 2, 1, 5)
    assert keep(loss, targets, weight, 0.3) == pytest.approx([1, 0.5, 0.5, 0.5, 0])


def test_hardest_negatives_are_chosen_target_by_target() -> None:
    loss_BK = torch.tensor([[5.0, 1.0], [1.0, 5.0], [2.0, 2.0]])
    targets_BK = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    kept_BK = hardest_negatives(
        loss_BK, targets_BK, torch.ones(3, 2), share=0.5, gather=lambda x: x
    )
    torch.testing.assert_close(kept_BK, torch.tensor([[1, 0], [0, 1], [0.5, 1]]))


def test_a_column_without_negatives_keeps_its_positives_and_is_no_nan() -> None:
    """As of a head whose fold has all negatives of a batch."""
    targets, weight = column(1, 0, 0), column(1, 0, 0)
    assert keep(column(1, 2, 3), targets, weight, 0.3) == [1, 0, 0]
