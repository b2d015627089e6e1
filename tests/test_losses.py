"""Losses, with values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mvg_core.training.losses import decoded_loss, painting_loss


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


# --- decoded colours ---

BLACK, WHITE, RED = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]


def row_of(*colours: list[float]) -> torch.Tensor:
    """An image (1, 3, 1, W) of these colours."""
    return torch.tensor(colours).T[None, :, None]


def decoded(painted: list[list[float]], classes: list[int], palette: list[list[float]], *, temperature: float = 3.0,
            in_palette: list[bool] | None = None, hidden: list[bool] | None = None) -> float:
    shown = torch.tensor([[hidden or [True] * len(classes)]])
    used = torch.tensor([in_palette or [True] * len(palette)])
    return decoded_loss(row_of(*painted), torch.tensor([[classes]]), torch.tensor([palette]), used, shown,
                        temperature).item()


def test_decoded_loss_worked_by_hand():
    # Squared distances between black and white are 3, which at temperature 3 is one unit of evidence.
    likely = math.e / (1 + math.e)
    cross_entropy = -math.log(likely)
    dice = 1 - (2 * likely + 1) / ((likely + (1 - likely)) + 1 + 1)
    assert decoded([WHITE, BLACK], [1, 0], [BLACK, WHITE]) == pytest.approx(cross_entropy + dice)
    # The other way round everything is as unlikely as it was likely.
    wrong = -math.log(1 - likely) + 1 - (2 * (1 - likely) + 1) / 3
    assert decoded([BLACK, WHITE], [1, 0], [BLACK, WHITE]) == pytest.approx(wrong)


def test_a_class_of_the_palette_that_is_absent_costs_nothing_where_it_is_not_painted():
    assert decoded([WHITE, BLACK], [1, 0], [BLACK, WHITE, RED], temperature=0.01) == pytest.approx(0.0, abs=1e-6)
    # Painted on one pixel it costs its whole Dice, 1 - 1 / (1 + 1), and that pixel's evidence: |white - red|^2 = 2.
    found = decoded([RED, BLACK], [1, 0], [BLACK, WHITE, RED], temperature=0.01)
    absent, missed = 1 - 1 / 2, 1 - 1 / 2
    assert found == pytest.approx((2 / 0.01) / 2 + (absent + missed) / 2, rel=1e-4)


def test_colours_that_are_not_in_the_palette_do_not_compete():
    expected = decoded([RED], [1], [BLACK, WHITE])
    assert decoded([RED], [1], [BLACK, WHITE, RED], in_palette=[True, True, False]) == pytest.approx(expected)
    assert decoded([RED], [2], [BLACK, RED, WHITE], in_palette=[True, False, True]) == pytest.approx(expected)


def test_with_the_background_alone_there_is_nothing_to_confuse():
    assert decoded([WHITE, RED], [0, 0], [BLACK, WHITE], in_palette=[True, False]) == pytest.approx(0.0, abs=1e-6)


def test_only_hidden_pixels_are_decoded():
    whole = decoded([WHITE, BLACK], [1, 0], [BLACK, WHITE])
    more = decoded([WHITE, BLACK, RED, WHITE], [1, 0, 1, 0], [BLACK, WHITE], hidden=[True, True, False, False])
    assert more == pytest.approx(whole)


def test_decoded_loss_with_nothing_hidden_is_zero():
    painted = torch.rand(2, 3, 4, 4, requires_grad=True)
    loss = decoded_loss(painted, torch.ones(2, 4, 4, dtype=torch.int64), torch.rand(2, 3, 3),
                        torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert painted.grad is not None
    assert not painted.grad.any()


def test_an_episode_with_nothing_hidden_does_not_count():
    painted, classes = torch.cat([row_of(WHITE, BLACK)] * 2), torch.tensor([[[1, 0]], [[0, 1]]])
    palette, used = torch.tensor([[BLACK, WHITE]] * 2), torch.ones(2, 2, dtype=torch.bool)
    hidden = torch.tensor([[[True, True]], [[False, False]]])
    assert decoded_loss(painted, classes, palette, used, hidden, 3.0).item() == pytest.approx(
        decoded([WHITE, BLACK], [1, 0], [BLACK, WHITE]))


def test_decoded_loss_pulls_colours_towards_the_true_one():
    painted = torch.full((1, 3, 1, 1), 0.5, requires_grad=True)
    decoded_loss(painted, torch.tensor([[[1]]]), torch.tensor([[BLACK, RED]]), torch.ones(1, 2, dtype=torch.bool),
                 torch.ones(1, 1, 1, dtype=torch.bool)).backward()
    assert painted.grad is not None
    assert painted.grad.flatten()[0] < 0.0  # more red
    assert painted.grad.flatten()[1:].tolist() == [0.0, 0.0]  # green and blue do not tell black from red
