"""What a stage minimises, on made-up log-probabilities by hand and on a small model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignlab.data.batching import collate, whole
from alignlab.errors import FirstLossError
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Logprobs, Policy
from alignlab.records import Batch, Loss
from alignlab.training.objectives import TOLERANCE, Objective, PreferenceLoss, RewardLoss, check_first_loss, nll
from tests.unit.conftest import attached, batch_of, encoded

TOTAL_GM = torch.tensor([[-4.0, -6.0], [-3.0, -2.0]])
REFERENCE_GM = torch.tensor([[-5.0, -5.0], [-4.0, -3.0]])
TOKENS_GM = torch.tensor([[2.0, 3.0], [3.0, 1.0]])
# Margins 2 and -1, of the reference 0 and -1: gaps 2 and 0. Per token 0 and 1, of the reference -5/6 and 5/3.
DPO = PreferenceLoss("sigmoid", beta=0.5, smoothing=0.0, length_norm="sum", reference="base", likelihood=0.0)


class Made:
    """A policy that answers with made-up numbers: other ones while it is off."""

    backbone = SimpleNamespace(kind=SimpleNamespace(scores_classes=False))
    nll = Policy.nll

    def __init__(self) -> None:
        self.total_GM, self.base_GM, self.passes = TOTAL_GM.clone().requires_grad_(), REFERENCE_GM.clone().requires_grad_(), 0

    def logprobs(self, batch: Batch) -> Logprobs:
        self.passes += 1
        return Logprobs(1 * self.total_GM, TOKENS_GM)

    @contextmanager
    def off(self) -> Iterator[None]:
        before, self.total_GM = self.total_GM, self.base_GM
        yield
        self.total_GM = before


def batch(reference_GM: Tensor | None = None, *, step_groups: int = 2, step_tokens: int = 9) -> Batch:
    empty = torch.zeros(2, 2)
    return Batch(torch.zeros(2, 2, 4), empty, empty, empty[0], ("a", "b"), step_groups, step_tokens, reference_GM)


def softplus(value: float) -> float:
    """-log sigmoid(-value)."""
    return math.log1p(math.exp(value))


def sigmoid_of(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def value_of(objective: Objective, given: Batch) -> float:
    return objective(Made(), given).value.item()  # type: ignore[arg-type]


def test_nll_is_nats_per_response_token_of_the_step() -> None:
    assert value_of(nll, batch(step_tokens=9)) == pytest.approx(15 / 9)


def test_dpo_is_the_mean_over_the_pairs_of_the_step() -> None:
    assert value_of(DPO, batch()) == pytest.approx((softplus(-1) + math.log(2)) / 2)
    assert value_of(DPO, batch(step_groups=8)) == pytest.approx((softplus(-1) + math.log(2)) / 8)


def test_without_a_reference_the_policy_s_own_margin_counts() -> None:
    objective = replace(DPO, reference="none")

    assert value_of(objective, batch()) == pytest.approx((softplus(-1) + softplus(0.5)) / 2)


def test_normalised_by_length_a_response_counts_per_token_in_policy_and_reference() -> None:
    objective = replace(DPO, length_norm="mean")

    assert value_of(objective, batch()) == pytest.approx((softplus(-0.5 * 5 / 6) + softplus(0.5 * 2 / 3)) / 2)


def test_a_cached_reference_is_used_instead_of_a_second_pass() -> None:
    policy = Made()

    loss = DPO(policy, batch(REFERENCE_GM - torch.tensor([1.0, 0.0])))  # type: ignore[arg-type]

    assert policy.passes == 1
    assert loss.value.item() == pytest.approx((softplus(-1.5) + softplus(-0.5)) / 2)  # gaps 3 and 1


@pytest.mark.parametrize("length_norm", ["sum", "mean"])
def test_a_cached_reference_gives_the_loss_of_a_computed_one(length_norm: str) -> None:
    objective = replace(DPO, length_norm=length_norm)

    assert value_of(objective, batch(REFERENCE_GM)) == value_of(objective, batch())


def test_the_likelihood_term_adds_the_chosen_response_per_token() -> None:
    objective = replace(DPO, likelihood=0.1)

    # chosen per token: -2 and -1
    assert value_of(objective, batch()) == pytest.approx(value_of(DPO, batch()) + 0.1 * (2 + 1) / 2)


def test_the_reference_takes_no_gradient() -> None:
    policy = Made()

    DPO(policy, batch()).value.backward()  # type: ignore[arg-type]

    # d/dx of softplus(-x / 2) / 2 is -sigmoid(-x / 2) / 4 at gaps 2 and 0
    slope = [1 / (1 + math.e) / 4, 1 / 8]
    assert policy.base_GM.grad is None
    assert policy.total_GM.grad is not None
    torch.testing.assert_close(policy.total_GM.grad, torch.tensor([[-slope[0], slope[0]], [-slope[1], slope[1]]]))


def test_metrics_are_means_over_the_pairs_and_a_tie_is_half_right() -> None:
    metrics = {name: value.item() for name, value in DPO(Made(), batch()).metrics.items()}  # type: ignore[arg-type]

    assert metrics == pytest.approx(
        {
            "accuracy": 0.75,
            "reward_margin": 0.5,
            "chosen_nats": -3.5,
            "rejected_nats": -4.0,
            "chosen_nats_per_token": -1.5,
            "rejected_nats_per_token": -2.0,
            "chosen_tokens": 2.5,
            "rejected_tokens": 2.0,
        }
    )


def test_a_gap_below_one_nat_is_right_and_a_negative_one_is_wrong() -> None:
    # Margins 2 and -1 against those of the references: gaps of 0.5, -1.5.
    reference_GM = torch.tensor([[-5.0, -6.5], [-4.0, -4.5]])

    metrics = DPO(Made(), batch(reference_GM)).metrics  # type: ignore[arg-type]

    assert metrics["accuracy"].item() == 0.5
    assert metrics["reward_margin"].item() == pytest.approx(0.5 * (0.5 - 1.5) / 2)


def test_apo_zero_takes_chosen_and_rejected_each_against_its_own_reference() -> None:
    # Ratios of the chosen: 1 and 1; of the rejected: -1 and 1.
    expected = [1 - sigmoid_of(0.5) + sigmoid_of(-0.5), 1 - sigmoid_of(0.5) + sigmoid_of(0.5)]

    assert value_of(replace(DPO, loss="apo_zero"), batch()) == pytest.approx(sum(expected) / 2)


def test_metrics_carry_no_graph() -> None:
    metrics = DPO(Made(), batch()).metrics  # type: ignore[arg-type]

    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("length_norm", ["sum", "mean"])
@pytest.mark.parametrize("loss", ["sigmoid", "robust"])
def test_the_first_loss_is_ln_2(llama: Backbone, loss: str, length_norm: str) -> None:
    policy = attached("lora", llama, spread=0.0)
    objective = replace(DPO, loss=loss, length_norm=length_norm, smoothing=0.1)

    value = objective(policy, batch_of(llama)).value

    assert value.item() == pytest.approx(math.log(2), abs=1e-6)


def test_the_first_loss_of_ipo_is_its_squared_target(llama: Backbone) -> None:
    policy = attached("lora", llama, spread=0.0)

    value = replace(DPO, loss="ipo", beta=0.1)(policy, batch_of(llama)).value

    assert value.item() == pytest.approx(25.0, abs=1e-3)  # (0 - 1 / 0.2) ** 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, math.log(2)),
        ({"smoothing": 0.2}, math.log(2)),
        ({"loss": "robust", "smoothing": 0.2}, math.log(2)),
        ({"loss": "hinge"}, 1.0),
        ({"loss": "ipo"}, 1.0),  # (0 - 1 / (2 * 0.5)) ** 2
        ({"loss": "apo_zero"}, 1.0),  # 1 - 1/2 + 1/2
        ({"reference": "start"}, math.log(2)),
        ({"likelihood": 0.3}, math.log(2)),
    ],
)
def test_the_first_loss_is_known_where_policy_and_reference_are_the_same(
    llama: Backbone, changes: dict[str, Any], expected: float
) -> None:
    policy = attached("lora", llama, spread=0.0)
    objective, given = replace(DPO, **changes), batch_of(llama)
    with torch.no_grad():
        given = replace(given, reference_GM=policy.logprobs(given).total_GM)

    known = objective.first_loss(policy)
    found = objective.preference_per_pair(objective(policy, given), given)

    assert known == pytest.approx(expected, abs=1e-12)
    assert found == pytest.approx(expected, abs=1e-6)


def test_of_a_part_of_a_step_the_loss_per_pair_is_that_of_its_own_pairs() -> None:
    objective = replace(DPO, likelihood=0.1)
    part = batch(step_groups=8)

    found = objective.preference_per_pair(objective(Made(), part), part)  # type: ignore[arg-type]

    assert found == pytest.approx((softplus(-1) + math.log(2)) / 2)


@pytest.mark.parametrize("reference", ["none", "model"])
def test_the_first_loss_is_not_known_under_another_reference(llama: Backbone, reference: str) -> None:
    assert replace(DPO, reference=reference).first_loss(attached("lora", llama)) is None


def test_the_first_loss_is_not_known_where_the_tuner_starts_elsewhere_or_drops_at_random(llama: Backbone) -> None:
    policy = attached("lora", llama)
    policy.tuner.starts_as_base = False

    from_base, from_start = DPO.first_loss(policy), replace(DPO, reference="start").first_loss(policy)
    policy.model.add_module("keeps", torch.nn.Dropout(0.0))
    without_dropout = replace(DPO, reference="start").first_loss(policy)
    policy.model.add_module("drops", torch.nn.Dropout(0.1))
    with_dropout = replace(DPO, reference="start").first_loss(policy)

    assert (from_base, with_dropout) == (None, None)
    assert from_start == without_dropout == pytest.approx(math.log(2))


@pytest.mark.parametrize(("objective", "known"), [(DPO, math.log(2)), (replace(DPO, loss="ipo", beta=0.1), 25.0)])
def test_a_first_loss_may_lie_off_by_the_tolerance_and_no_more(
    llama: Backbone, objective: PreferenceLoss, known: float
) -> None:
    policy, room = attached("lora", llama, spread=0.0), TOLERANCE * max(1.0, known)

    def lies_off(by: float) -> None:
        found = Loss(torch.tensor(known + by, dtype=torch.float64), {})
        check_first_loss("fit", objective, policy, found, batch())

    lies_off(0.9 * room)
    lies_off(-0.9 * room)
    for by in (1.1 * room, -1.1 * room):
        with pytest.raises(FirstLossError) as said:
            lies_off(by)
        assert str(said.value) == (
            f"stage fit: the first preference loss is {known + by:.6g} and has to be {known:.6g}, since policy and reference"
            " are the same model before the first update; the reference log-probabilities are another model's, or rounded"
            " otherwise: remove the folder `references` of the store, or set method.cache_reference=false."
        )


def test_an_objective_without_a_known_first_loss_is_not_held_to_one(llama: Backbone) -> None:
    policy, anything = attached("lora", llama), Loss(torch.tensor(7.0), {})

    for objective in (nll, replace(DPO, reference="none")):
        check_first_loss("fit", objective, policy, anything, batch())

    with pytest.raises(FirstLossError, match=r"the first preference loss is 7 and has to be 0\.693147"):
        check_first_loss("fit", DPO, policy, anything, batch())


@pytest.mark.parametrize("objective", [nll, DPO, replace(DPO, likelihood=0.3, length_norm="mean")], ids=["nll", "dpo", "both"])
def test_the_shares_of_a_step_add_up_to_the_step(llama: Backbone, objective: Objective) -> None:
    policy = attached("lora", llama)
    groups = encoded(llama)
    step = whole(groups, llama.codec.pad)
    totals: dict[str, Any] = {"pad": llama.codec.pad, "step_groups": step.step_groups, "step_tokens": step.step_tokens}

    at_once = objective(policy, step)
    shares = [objective(policy, collate(groups[begin : begin + 2], **totals)) for begin in (0, 2)]

    torch.testing.assert_close(shares[0].value + shares[1].value, at_once.value, atol=1e-5, rtol=1e-5)
    for name, value in at_once.metrics.items():
        torch.testing.assert_close(shares[0].metrics[name] + shares[1].metrics[name], value, atol=1e-5, rtol=1e-5)


def test_the_base_reference_is_the_untouched_backbone(llama: Backbone) -> None:
    policy = attached("lora", llama)
    given = batch_of(llama)
    untouched = _margin_without_tuner(policy, given)
    own = policy.logprobs(given).total_GM

    loss = DPO(policy, given)

    gap_G = own[:, 0] - own[:, 1] - untouched
    assert loss.metrics["reward_margin"].item() == pytest.approx(0.5 * gap_G.mean().item(), abs=1e-5)


def _margin_without_tuner(policy: Policy, given: Batch) -> Tensor:
    with policy.off():
        total_GM = policy.logprobs(given).total_GM
    return total_GM[:, 0] - total_GM[:, 1]


class Rewarding(Made):
    """A policy that gives made-up rewards: margins 2 and -1, sums 6 and 3."""

    reward_GM = torch.tensor([[4.0, 2.0], [1.0, 2.0]])

    def class_scores(self, batch: Batch) -> Tensor:
        assert batch.rows == ("a", "b")
        return self.reward_GM[..., None]


def test_a_reward_model_is_charged_for_pairs_that_it_orders_the_other_way() -> None:
    policy: Any = Rewarding()

    plain = RewardLoss(margin=0.0, centring=0.0)(policy, batch())
    more = RewardLoss(margin=0.5, centring=0.01)(policy, batch())

    assert plain.value == pytest.approx((softplus(-2) + softplus(1)) / 2)
    assert more.value == pytest.approx((softplus(-1.5) + softplus(1.5)) / 2 + 0.01 * (36 + 9) / 2)
    assert {name: value.item() for name, value in plain.metrics.items()} == {
        "accuracy": 0.5,
        "reward_margin": 0.5,
        "chosen_reward": 2.5,
        "rejected_reward": 2.0,
    }


def test_a_reward_model_is_right_by_any_margin_and_half_right_of_a_tie() -> None:
    policy: Any = Rewarding()
    policy.reward_GM = torch.tensor([[2.0, 1.5], [2.0, 2.0]])

    assert RewardLoss(0.0, 0.0)(policy, batch()).metrics["accuracy"].item() == 0.75


def test_the_rewards_of_a_part_of_a_step_are_its_share() -> None:
    policy: Any = Rewarding()

    whole_step, half = (RewardLoss(0.0, 0.0)(policy, batch(step_groups=groups)).value for groups in (2, 4))

    assert half.item() == pytest.approx(whole_step.item() / 2)
