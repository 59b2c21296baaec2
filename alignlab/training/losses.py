"""Preference losses as pure functions. Margins are log p(chosen) - log p(rejected) in nats, one per pair (G)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Ratios:
    """How far the policy is from its reference, in nats per pair. `gap_G`: the policy's margin minus the reference's.
    `chosen_G`, `rejected_G`: log p under the policy minus log p under the reference, of each response."""

    gap_G: Tensor
    chosen_G: Tensor
    rejected_G: Tensor


PreferenceLoss = Callable[[Ratios, float, float], Tensor]
"""(ratios, beta, label smoothing) -> loss, per pair."""


def sigmoid(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    """DPO (arXiv 2305.18290, eq. 7); with smoothing, conservative DPO: a share of labels is taken as flipped."""
    gap_G = ratios.gap_G
    return -(1 - smoothing) * F.logsigmoid(beta * gap_G) - smoothing * F.logsigmoid(-beta * gap_G)


def ipo(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    """IPO (arXiv 2310.12036, eq. 17): the gap is pulled to 1 / (2 beta). Smoothing has no meaning here and is refused."""
    return (ratios.gap_G - 1 / (2 * beta)) ** 2


def hinge(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    """SLiC's hinge on DPO's margin (arXiv 2305.10425; margin form of arXiv 2309.06657)."""
    return F.relu(1 - beta * ratios.gap_G)


def robust(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    """Robust DPO (arXiv 2403.00409, eq. 12): unbiased under a known share `smoothing` < 0.5 of flipped labels."""
    flipped = smoothing * F.logsigmoid(-beta * ratios.gap_G)
    return (-(1 - smoothing) * F.logsigmoid(beta * ratios.gap_G) + flipped) / (1 - 2 * smoothing)


def apo_zero(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    """APO-zero (arXiv 2408.06266, eq. 7): the chosen response becomes likelier than it was, the rejected one less likely."""
    return (1 - (beta * ratios.chosen_G).sigmoid()) + (beta * ratios.rejected_G).sigmoid()


PREFERENCE_LOSSES: Mapping[str, PreferenceLoss] = {
    "sigmoid": sigmoid,
    "ipo": ipo,
    "hinge": hinge,
    "robust": robust,
    "apo_zero": apo_zero,
}
