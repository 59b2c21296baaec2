"""RAHF's objectives: stage `instruct` contrasts prefixes, stage `fit` moves hidden states by a direction of preference.

A direction comes from the same response read behind two prefixes, or by two models. Shapes: L layers, K response tokens, D
width. Its passes run without the tuner, without gradients, and only up to the highest layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignlab.models.config import Shape
from alignlab.models.packing import member_of_tokens
from alignlab.models.policy import Policy, token_divergences
from alignlab.records import Batch, Loss
from alignlab.training.references import SecondModel
from alignlab.tuners.config import LayersConfig


@dataclass(frozen=True)
class Contrast:
    """Stage `instruct` of SCIT: likelihood plus contrast (arXiv 2312.15997): -[P_m + log sigma(P_m - P_o)], the label smoothed.

    Member 0 stands behind the matching prefix, member 1 behind the other. `over`: mean (official code, taken from HIR: P is
    nats per token in the contrast, and the likelihood is the mean over the step's tokens) | sum (paper: P is nats of the whole
    response). With mean the gap is bounded: smoothed by 0.2, the contrast is smallest, 0.5004, at a gap of ln 4.
    """

    over: str
    smoothing: float

    def __call__(self, policy: Policy, batch: Batch) -> Loss:
        """The loss, and what it is made of."""
        scores = policy.logprobs(batch)
        value_GM = scores.mean_GM if self.over == "mean" else scores.total_GM
        gap_G = value_GM[:, 0] - value_GM[:, 1]
        contrast_G = -(1 - self.smoothing) * logsigmoid(gap_G) - self.smoothing * logsigmoid(-gap_G)
        per_group = 1 / batch.step_groups
        matching_G = scores.total_GM[:, 0]
        # Both members hold the same response, so each has half of the step's response tokens.
        likelihood = -matching_G.sum() * (2 / batch.step_tokens if self.over == "mean" else per_group)
        metrics = {
            "contrast": contrast_G,
            "gap_nats_per_token": scores.mean_GM[:, 0] - scores.mean_GM[:, 1],
            "matching_nats_per_token": scores.mean_GM[:, 0],
            "accuracy": (gap_G > 0).float() + 0.5 * (gap_G == 0).float(),
        }
        value = likelihood + contrast_G.sum() * per_group
        return Loss(value, {name: each.detach().sum() * per_group for name, each in metrics.items()})


class DirectionSource(Protocol):
    """Reads each group's response twice: as preferred and as dispreferred."""

    def __call__(self, policy: Policy, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The states of the model that the tuner sits on, and their shift towards what is preferred; both L,K,D, fp32, at the
        response tokens of member 0."""


class Prefixes:
    """v = A[better prefix] - A[worse prefix], the base being the plain prompt; members are plain, better, worse (SCIT, LoRRA).

    All three run in one pass.
    """

    def cache_key(self) -> str:
        """It has no settings."""
        return "prefixes"

    @torch.no_grad()
    def __call__(self, policy: Policy, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See DirectionSource."""
        with policy.off():
            states_LND = policy.hidden_states(batch, layers).float()
        member_N = member_of_tokens(batch)
        plain, better, worse = (states_LND[:, member_N == number] for number in range(3))
        return plain, better - worse


class Models:
    """v = A[preferred model] - A[dispreferred model] on one input; the tuner sits on the preferred model (Dual)."""

    def __init__(self, second: SecondModel) -> None:
        self._second = second

    def cache_key(self) -> SecondModel:
        """That of the second model."""
        return self._second

    @torch.no_grad()
    def __call__(self, policy: Policy, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See DirectionSource."""
        with policy.off():
            preferred = policy.hidden_states(batch.member(0), layers).float()
            with self._second.inside():
                dispreferred = policy.hidden_states(batch.member(0), layers).float()
        return preferred, preferred - dispreferred


@dataclass(frozen=True)
class Match:
    """Stage `fit`: d = A[with tuner] - (A[without] + alpha v) at the response tokens, mean over layers and the step's tokens.

    `distance`: norm, the mean of |d| (official code) | squared, the mean of |d|^2 (arXiv 2312.15997, the formula). `kl`: weight
    of KL(without || with) of the next token in nats per response token, which costs two passes of full depth; 0 = not computed.
    """

    layers: LayersConfig
    direction_source: DirectionSource
    alpha: float
    distance: str
    kl: float

    def check(self, shape: Shape) -> None:
        """Raises ConfigError for layers outside the backbone."""
        self.layers.of(shape)

    def highest(self, shape: Shape) -> int | None:
        """The highest block whose output decides the loss; None where the logits do too."""
        return None if self.kl else self.layers.of(shape)[-1]

    def __call__(self, policy: Policy, batch: Batch) -> Loss:
        """The loss, and for each layer the fraction of the target shift that is reached, 1 - |d| / (alpha |v|)."""
        layers = self.layers.of(policy.backbone.shape)
        base_LKD, shift_LKD = self.direction_source(policy, batch, layers)
        own = batch.member(0)
        moved_LKD = policy.hidden_states(own, layers).float() - (base_LKD + self.alpha * shift_LKD)
        # Not sqrt of a sum, whose gradient at a residual of zero is not a number.
        norm_LK = torch.linalg.vector_norm(moved_LKD, dim=-1)
        loss_LK = norm_LK if self.distance == "norm" else moved_LKD.square().sum(-1)
        tokens = batch.step_tokens / batch.ids_GMT.shape[1]
        value = loss_LK.sum() / (len(layers) * tokens)
        metrics = self._reached(layers, norm_LK.detach(), shift_LKD, tokens)
        if self.kl:
            with torch.no_grad():
                before = policy.read(own, policy.off)
            divergence = token_divergences(before, policy.read(own)).sum() / tokens
            metrics["kl"] = divergence.detach()
            value = value + self.kl * divergence
        return Loss(value, metrics)

    def _reached(self, layers: list[int], norm_LK: Tensor, shift_LKD: Tensor, tokens: float) -> dict[str, Tensor]:
        target_LK = abs(self.alpha) * torch.linalg.vector_norm(shift_LKD, dim=-1)
        # Per token, so that micro-batches of a step add up; 0 where the target shift is 0.
        reached_LK = torch.where(target_LK > 0, 1 - norm_LK / target_LK, 0.0)
        metrics = {f"reached_{layer}": reached / tokens for layer, reached in zip(layers, reached_LK.sum(1), strict=True)}
        return {
            **metrics,
            "distance": norm_LK.sum() / (len(layers) * tokens),
            "target": target_LK.sum() / (len(layers) * tokens),
        }
