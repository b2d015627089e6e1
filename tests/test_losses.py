"""Losses, with values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mvg_core.training.losses import painting_loss


def test_painting_loss_worked_by_hand():
    # One row of four pixels in two patches; the second is hidden. Errors there: 0.005 (quadratic), -0.11 (linear).
    painted = torch.tensor([9.0, 9.0, 0.005, -0.11]).view(1, 1, 1, 4)
    hidden = torch.tensor([[[False, True]]])
    weight = torch.tensor([1.0, 1.0, 1.0, 0.1]).view(1, 1, 1, 4)
    costs = [0.005**2 / 0.02, 0.11 - 0.005]  # 0.00125 and 0.105
    loss = painting_loss(painted, torch.zeros_like(painted), hidden, weight)
    assert loss.item() == pytest.approx((costs[0] + 0.1 * costs[1]) / (1.1 + 0.01))


def test_painting_loss_counts_a_broadcast_weight_in_every_channel():
    painted, target = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    loss = painting_loss(painted, target, torch.ones(1, 1, 1, dtype=torch.bool), torch.ones(1, 1, 2, 2))
    assert loss.item() == pytest.approx(12 * 0.995 / 12.01)


def test_painting_loss_with_nothing_hidden_is_zero():
    painted = torch.ones(1, 3, 2, 2, requires_grad=True)
    loss = painting_loss(painted, torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 1, dtype=torch.bool), torch.ones(1))
    loss.backward()
    assert loss.item() == 0.0
    assert painted.grad is not None
    assert not painted.grad.any()


def test_painting_loss_never_looks_at_visible_targets():
    painted = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2).requires_grad_()
    target = torch.tensor([0.0, math.nan]).view(1, 1, 1, 2)
    loss = painting_loss(painted, target, torch.tensor([[[True, False]]]), torch.ones(1))
    loss.backward()
    assert loss.item() == pytest.approx(0.995 / 1.01)
    assert painted.grad is not None
    torch.testing.assert_close(painted.grad.flatten(), torch.tensor([1 / 1.01, 0.0]))


@pytest.mark.parametrize(
    ("target", "hidden", "message"),
    [
        (torch.zeros(1, 3, 4, 2), torch.ones(1, 2, 2, dtype=torch.bool), "must both be"),
        (torch.zeros(1, 3, 4, 4), torch.ones(1, 2, 2), "must be boolean"),
        (torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 2, dtype=torch.bool), "h dividing 4"),
        (torch.zeros(1, 3, 4, 4), torch.ones(1, 2, 3, dtype=torch.bool), "w dividing 4"),
    (torch.zeros(1, 3, 4, 4), torch.ones(2, 2, 2, dtype=torch.bool), "B = 1"),
        (torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 2, 2, dtype=torch.bool), r"must be \(B, h, w\)"),
    ],
)
def test_painting_loss_refuses_shapes_that_do_not_fit(target, hidden, message):
    with pytest.raises(ValueError, match=message):
        painting_loss(torch.zeros(1, 3, 4, 4), target, hidden, torch.ones(1))


def test_painting_loss_refuses_a_single_image_without_batch():
    with pytest.raises(ValueError, match="must both be"):
        painting_loss(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), torch.ones(1, 2, 2, dtype=torch.bool), torch.ones(1))
