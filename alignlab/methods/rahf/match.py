"""Stage `fit`: the model's own hidden states move to where the shift points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignlab.methods.rahf.directions import DirectionSource
from alignlab.models.config import LayersConfig, Shape
from alignlab.models.policy import Policy
from alignlab.records import Batch, Loss


@dataclass(frozen=True)
class Match:
    """d = A[with tuner] - (A[without] + alpha v), at the response tokens, averaged over layers and tokens of the step.

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

    def __call__(self, policy: Policy, batch: Batch) -> Loss:
        """The loss, and for each layer the share of the target shift that is reached, 1 - |d| / (alpha |v|)."""
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
            divergence = policy.divergence(own).sum() / tokens
            metrics["kl"] = divergence.detach()
            value = value + self.kl * divergence
        return Loss(value, metrics)

    def _reached(self, layers: list[int], norm_LK: Tensor, shift_LKD: Tensor, tokens: float) -> dict[str, Tensor]:
        target_LK = abs(self.alpha) * torch.linalg.vector_norm(shift_LKD, dim=-1)
        # Token by token, so that shares of a step add up; where there is no shift, nothing is to be reached.
        reached_LK = torch.where(target_LK > 0, 1 - norm_LK / target_LK, 0.0)
        metrics = {f"reached_{layer}": reached / tokens for layer, reached in zip(layers, reached_LK.sum(1), strict=True)}
        return {
            **metrics,
            "distance": norm_LK.sum() / (len(layers) * tokens),
            "target": target_LK.sum() / (len(layers) * tokens),
        }
