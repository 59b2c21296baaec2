"""What a stage minimises: functions (policy, batch) -> Loss. Values and metrics are the batch's part of its optimiser step.

The preference losses are pure functions. Margins are log p(chosen) - log p(rejected) in nats, one per pair (G).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.errors import FirstLossError
from alignlab.models.policy import Logprobs, Pass, Policy, token_divergences
from alignlab.models.text import Codec
from alignlab.records import Batch, EncodedGroup, Loss
from alignlab.training import processes

Objective = Callable[[Policy, Batch], Loss]
"""One that does not fit every backbone has a method `check(shape)` too, one that does not fit every row `check_rows(codec,
groups)`, which raise ConfigError; and one that needs more than the policy a context manager `ready(policy)`."""
TOLERANCE = 1e-4
"""How far the first loss may lie from the known one; absolute, and relative to a known loss above 1."""


def nll(policy: Policy, batch: Batch) -> Loss:
    """Mean negative log-likelihood of what the examples of the step end in: nats per response token, or per class."""
    return policy.nll(batch)


@dataclass(frozen=True)
class Ratios:
    """How far the policy is from its reference, in nats per pair. `gap_G`: the policy's margin minus the reference's.
    `chosen_G`, `rejected_G`: log p under the policy minus log p under the reference, of each response."""

    gap_G: Tensor
    chosen_G: Tensor
    rejected_G: Tensor


def sigmoid(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    """DPO (arXiv 2305.18290, eq. 7); with smoothing, conservative DPO: that fraction of labels is taken as flipped."""
    gap_G = ratios.gap_G
    return -(1 - smoothing) * F.logsigmoid(beta * gap_G) - smoothing * F.logsigmoid(-beta * gap_G)


def ipo(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    """IPO (arXiv 2310.12036, eq. 17): the gap is pulled to 1 / (2 beta). Smoothing has no meaning here and is refused."""
    return (ratios.gap_G - 1 / (2 * beta)) ** 2


def hinge(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    """SLiC's hinge on DPO's margin (arXiv 2305.10425; margin form of arXiv 2309.06657)."""
    return F.relu(1 - beta * ratios.gap_G)


def robust(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    """Robust DPO (arXiv 2403.00409, eq. 12): unbiased under a known fraction `smoothing` < 0.5 of flipped labels."""
    flipped = smoothing * F.logsigmoid(-beta * ratios.gap_G)
    return (-(1 - smoothing) * F.logsigmoid(beta * ratios.gap_G) + flipped) / (1 - 2 * smoothing)


def apo_zero(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    """APO-zero (arXiv 2408.06266, eq. 7): the chosen response becomes likelier than it was, the rejected one less likely."""
    return (1 - (beta * ratios.chosen_G).sigmoid()) + (beta * ratios.rejected_G).sigmoid()


PREFERENCE_LOSSES: Mapping[str, Callable[[Ratios, float, float], Tensor]] = {
    "sigmoid": sigmoid,
    "ipo": ipo,
    "hinge": hinge,
    "robust": robust,
    "apo_zero": apo_zero,
}
"""(ratios, beta, label smoothing) -> loss, per pair."""


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
        """The loss, and metrics to watch; falling log-probabilities of chosen responses are common, see the card."""
        scores = policy.logprobs(batch)
        value_GM = self._value(scores.total_GM, scores)
        reference_GM = self._reference(policy, batch, scores)
        ratio_GM = value_GM - reference_GM
        reward_GM = self.beta * ratio_GM
        gap_G = _margin(value_GM) - _margin(reference_GM)
        loss_G = self._loss(Ratios(gap_G, ratio_GM[:, 0], ratio_GM[:, 1]))
        if self.likelihood:
            loss_G = loss_G - self.likelihood * scores.mean_GM[:, 0]
        per_group = 1 / batch.step_groups
        metrics = {
            "accuracy": (gap_G > 0).float() + 0.5 * (gap_G == 0).float(),
            "reward_margin": _margin(reward_GM),
            "chosen_nats": scores.total_GM[:, 0],
            "rejected_nats": scores.total_GM[:, 1],
            "chosen_nats_per_token": scores.mean_GM[:, 0],
            "rejected_nats_per_token": scores.mean_GM[:, 1],
            "chosen_tokens": scores.tokens_GM[:, 0],
            "rejected_tokens": scores.tokens_GM[:, 1],
        }
        return Loss(loss_G.sum() * per_group, {name: value.detach().sum() * per_group for name, value in metrics.items()})

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


@dataclass(frozen=True)
class RewardLoss:
    """The loss of a reward model on pairs (member 0 chosen, member 1 rejected). `margin`: by how much more the chosen response
    should get (arXiv 2307.09288, eq. 2, there by rating). `centring`: weight of the squared sum of a pair's rewards, which
    draws their mean to 0 (arXiv 2312.09244)."""

    margin: float
    centring: float

    def __call__(self, policy: Policy, batch: Batch) -> Loss:
        """The batch's share of the mean over the step's pairs, and what the pairs are given."""
        reward_GM = policy.class_scores(batch)[..., 0]
        loss_G = bradley_terry(_margin(reward_GM) - self.margin) + self.centring * reward_GM.sum(-1) ** 2
        per_group = 1 / batch.step_groups
        gap_G = _margin(reward_GM)
        metrics = {
            "accuracy": (gap_G > 0).float() + 0.5 * (gap_G == 0).float(),
            "reward_margin": gap_G,
            "chosen_reward": reward_GM[:, 0],
            "rejected_reward": reward_GM[:, 1],
        }
        return Loss(loss_G.sum() * per_group, {name: value.detach().sum() * per_group for name, value in metrics.items()})


class Aligned(Protocol):
    """A model whose passes over the batches of a stage are read beside the policy's."""

    def check(self, codec: Codec, groups: Sequence[EncodedGroup]) -> None:
        """Raises ConfigError where it cannot read these rows; no weights yet."""

    def ready(self, policy: Policy) -> AbstractContextManager[None]:
        """Inside, it can be read."""

    def read(self, policy: Policy, batch: Batch) -> list[Pass]:
        """Its passes over a batch."""


@dataclass(frozen=True)
class Distillation:
    """KL(student || softmax(s z_aligned + (1 - s) z_reference)) of the next token, over the whole vocabulary, at the response
    tokens of every item (CLM, arXiv 2503.04346, section 3; TrRa, arXiv 2506.12704). The student is the policy with its tuner,
    the reference the policy without. `strength`: s, any real number."""

    aligned: Aligned
    strength: float

    def check_rows(self, codec: Codec, groups: Sequence[EncodedGroup]) -> None:
        """Raises ConfigError for rows that the aligned model cannot read."""
        self.aligned.check(codec, groups)

    def ready(self, policy: Policy) -> AbstractContextManager[None]:
        """Inside, the aligned model is in memory."""
        return self.aligned.ready(policy)

    def __call__(self, policy: Policy, batch: Batch) -> Loss:
        """The batch's share of the mean over the response tokens of the step, in nats."""
        with torch.no_grad():
            teacher = [*_weighed(self.aligned.read, self.strength, policy, batch)]
            teacher += _weighed(lambda own, its: own.read(its, own.off), 1 - self.strength, policy, batch)
        divergence_K = token_divergences(teacher, policy.read(batch), learned_first=True)
        return Loss(divergence_K.sum() / batch.step_tokens, {})


def _weighed(read: Callable[[Policy, Batch], list[Pass]], weight: float, policy: Policy, batch: Batch) -> list[Pass]:
    """Passes that count by a weight; none at 0."""
    return [replace(each, weight=weight * each.weight) for each in read(policy, batch)] if weight else []


def bradley_terry(gap_G: Tensor) -> Tensor:
    """Nats per pair: -log of the probability that the chosen response is preferred, where it is given so much more reward."""
    return -F.logsigmoid(gap_G)


def _margin(value_GM: Tensor) -> Tensor:
    return value_GM[:, 0] - value_GM[:, 1]


def check_first_loss(stage: str, objective: Objective, policy: Policy, loss: Loss, batch: Batch) -> None:
    """Raises FirstLossError where a preference loss of the first step is not the known one, in every process or in none: the
    policy starts as its own reference, so an error in the reference shows there."""
    known = objective.first_loss(policy) if isinstance(objective, PreferenceLoss) else None
    if known is None or not isinstance(objective, PreferenceLoss):
        return
    for found in processes.gathered(objective.preference_per_pair(loss, batch)):
        if abs(found - known) > TOLERANCE * max(1.0, known):
            raise FirstLossError(
                f"stage {stage}: the first preference loss is {found:.6g} and has to be {known:.6g}, since policy and reference"
                " are the same model before the first update; the reference log-probabilities are another model's, or rounded"
                " otherwise: remove the folder `references` of the store, or set method.cache_reference=false."
            )
