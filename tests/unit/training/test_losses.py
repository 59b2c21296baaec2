"""Preference losses on hand-derived numbers. A gap of 2 nats at beta 0.5 is a logit of 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alignlab.methods.preference import LOSSES
from alignlab.training.objectives import PREFERENCE_LOSSES, Ratios, apo_zero, hinge, ipo, robust, sigmoid

GAP_G = torch.tensor([2.0, 0.0, -2.0])
RIGHT, WRONG = math.log1p(math.exp(-1)), math.log1p(math.exp(1))  # -log sigmoid(1), -log sigmoid(-1)


def apart(gap_G: Tensor) -> Ratios:
    """Pairs of this gap; all of it is the chosen response's."""
    return Ratios(gap_G, gap_G, torch.zeros_like(gap_G))


def test_sigmoid_is_minus_log_of_the_logistic_function() -> None:
    assert sigmoid(apart(GAP_G), 0.5, 0.0).tolist() == pytest.approx([RIGHT, math.log(2), WRONG])


def test_smoothing_takes_a_share_of_the_labels_as_flipped() -> None:
    expected = [0.9 * RIGHT + 0.1 * WRONG, math.log(2), 0.9 * WRONG + 0.1 * RIGHT]

    assert sigmoid(apart(GAP_G), 0.5, 0.1).tolist() == pytest.approx(expected)


def test_ipo_pulls_the_gap_to_one_over_two_beta() -> None:
    # 1 / (2 * 0.25) = 2
    assert ipo(apart(GAP_G), 0.25, 0.0).tolist() == [0.0, 4.0, 16.0]


def test_hinge_is_zero_from_a_logit_of_one_on() -> None:
    assert hinge(apart(torch.tensor([4.0, 2.0, 0.0, -2.0])), 0.5, 0.0).tolist() == [0.0, 0.0, 1.0, 2.0]


def test_robust_subtracts_the_flipped_share_and_divides_by_what_is_left() -> None:
    expected = [(0.9 * RIGHT - 0.1 * WRONG) / 0.8, math.log(2), (0.9 * WRONG - 0.1 * RIGHT) / 0.8]

    assert robust(apart(GAP_G), 0.5, 0.1).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_robust_is_unbiased_under_its_share_of_flipped_labels(smoothing: float) -> None:
    seen = (1 - smoothing) * robust(apart(GAP_G), 0.5, smoothing) + smoothing * robust(apart(-GAP_G), 0.5, smoothing)

    torch.testing.assert_close(seen, sigmoid(apart(GAP_G), 0.5, 0.0))


def test_robust_without_flipped_labels_is_sigmoid() -> None:
    torch.testing.assert_close(robust(apart(GAP_G), 0.5, 0.0), sigmoid(apart(GAP_G), 0.5, 0.0))


@pytest.mark.parametrize("loss", [sigmoid, robust])
def test_a_very_wrong_pair_has_a_finite_loss(loss: object) -> None:
    assert torch.isfinite(loss(apart(torch.tensor([-1e4])), 1.0, 0.1)).all()  # type: ignore[operator]


def test_apo_zero_looks_at_each_response_by_itself() -> None:
    chosen_G, rejected_G = torch.tensor([2.0, 0.0, -2.0]), torch.tensor([-2.0, 0.0, -2.0])

    loss_G = apo_zero(Ratios(chosen_G - rejected_G, chosen_G, rejected_G), 0.5, 0.0)

    # At logits of 1 and -1: 1 - 0.7310586 + 0.2689414; a pair that fell together loses on one side what it gains on the other.
    assert loss_G.tolist() == pytest.approx([0.5378828, 1.0, 1.0])


def test_the_config_offers_exactly_the_losses_there_are() -> None:
    assert list(PREFERENCE_LOSSES) == LOSSES
