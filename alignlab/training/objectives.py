"""What a stage minimises: functions (policy, batch) -> Loss. Values and metrics are the batch's share of its step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from alignlab.models.config import Shape
from alignlab.models.policy import Logprobs, Policy
from alignlab.records import Batch, Loss
from alignlab.training.losses import PREFERENCE_LOSSES, Ratios

Objective = Callable[[Policy, Batch], Loss]


@runtime_checkable
class Shaped(Protocol):
    """An objective that does not fit every backbone."""

    def check(self, shape: Shape) -> None:
        """Raises ConfigError where it does not."""


def nll(policy: Policy, batch: Batch) -> Loss:
    """Mean negative log-likelihood of what the examples of the step end in: nats per response token, or per class."""
    return policy.nll(batch)


@dataclass(frozen=True)
class PreferenceLoss:
    """A preference loss on pairs (member 0 chosen, member 1 rejected).

    `length_norm`: sum | mean, whether a response counts by its total or its per-token log-probability. `reference`: base
    (tuner off), start (the stage's first weights, from the cache), model (another one, from the cache) or none. `likelihood`:
    weight of an added per-token negative log-likelihood of the chosen response.
    """

    loss: str
    beta: float
    smoothing: float
    length_norm: str
    reference: str
    likelihood: float

    def __call__(self, policy: Policy, batch: Batch) -> Loss:
        """The loss and what has to be watched beside it; falling chosen log-probabilities are common, see the card."""
        scores = policy.logprobs(batch)
        value_GM = self._value(scores.total_GM, scores)
        reference_GM = self._reference(policy, batch, scores)
        ratio_GM = value_GM - reference_GM
        reward_GM = self.beta * ratio_GM
        gap_G = _margin(value_GM) - _margin(reference_GM)
        loss_G = self._loss(Ratios(gap_G, ratio_GM[:, 0], ratio_GM[:, 1]))
        if self.likelihood:
            loss_G = loss_G - self.likelihood * scores.mean_GM[:, 0]
        share = 1 / batch.step_groups
        correct_G = (gap_G > 0).float() + 0.5 * (gap_G == 0).float()
        metrics = {
            "accuracy": correct_G,
            "reward_margin": _margin(reward_GM),
            "chosen_nats": scores.total_GM[:, 0],
            "rejected_nats": scores.total_GM[:, 1],
            "chosen_nats_per_token": scores.mean_GM[:, 0],
            "rejected_nats_per_token": scores.mean_GM[:, 1],
            "chosen_tokens": scores.tokens_GM[:, 0],
            "rejected_tokens": scores.tokens_GM[:, 1],
        }
        return Loss(loss_G.sum() * share, {name: value.detach().sum() * share for name, value in metrics.items()})

    def first_loss(self, policy: Policy) -> float | None:
        """The preference loss of a pair while the policy is its own reference, as at the first step: ln 2 for sigmoid. None
        where the two need not be equal then: a tuner that starts elsewhere, dropout, another model, no reference."""
        same = self.reference == "start" or (self.reference == "base" and policy.tuner.starts_as_base)
        if not same or any(isinstance(module, nn.Dropout) and module.p > 0 for module in policy.model.modules()):
            return None
        zero_G = torch.zeros(1, dtype=torch.float64)
        return self._loss(Ratios(zero_G, zero_G, zero_G)).item()

    def preference_per_pair(self, loss: Loss, batch: Batch) -> float:
        """The mean over the batch's pairs of the preference loss in `loss`, an added likelihood term taken out."""
        added = self.likelihood * loss.metrics["chosen_nats_per_token"] if self.likelihood else 0.0
        return float(loss.value.detach() + added) * batch.step_groups / len(batch.rows)

    def _loss(self, ratios: Ratios) -> Tensor:
        return PREFERENCE_LOSSES[self.loss](ratios, self.beta, self.smoothing)

    def _value(self, total_GM: Tensor, scores: Logprobs) -> Tensor:
        return total_GM / scores.tokens_GM.clamp(min=1) if self.length_norm == "mean" else total_GM

    def _reference(self, policy: Policy, batch: Batch, scores: Logprobs) -> Tensor:
        """The reference's value of each response; from the cache if the batch carries it."""
        if self.reference == "none":
            return torch.zeros_like(scores.total_GM)
        if batch.reference_GM is not None:
            return self._value(batch.reference_GM, scores)
        assert self.reference == "base"  # of the others a batch brings the log-probabilities
        with torch.no_grad(), policy.off():
            return self._value(policy.logprobs(batch).total_GM, scores)


def _margin(value_GM: Tensor) -> Tensor:
    return value_GM[:, 0] - value_GM[:, 1]
