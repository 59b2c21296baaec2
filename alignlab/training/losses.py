"""Preference losses as pure functions. Margins are log p(chosen) - log p(rejected) in nats, one per pair (G)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

PreferenceLoss = Callable[[Tensor, float, float], Tensor]
"""(policy margin minus reference margin, beta, label smoothing) -> loss, all per pair."""


def sigmoid(gap_G: Tensor, beta: float, smoothing: float) -> Tensor:
    """DPO (arXiv 2305.18290, eq. 7); with smoothing, conservative DPO: a share of labels is taken as flipped."""
    return -(1 - smoothing) * F.logsigmoid(beta * gap_G) - smoothing * F.logsigmoid(-beta * gap_G)


def ipo(gap_G: Tensor, beta: float, smoothing: float) -> Tensor:
    """IPO (arXiv 2310.12036, eq. 17): the gap is pulled to 1 / (2 beta). Smoothing has no meaning here and is refused."""
    return (gap_G - 1 / (2 * beta)) ** 2


def hinge(gap_G: Tensor, beta: float, smoothing: float) -> Tensor:
    """SLiC's hinge on DPO's margin (arXiv 2305.10425; margin form of arXiv 2309.06657)."""
    return F.relu(1 - beta * gap_G)


def robust(gap_G: Tensor, beta: float, smoothing: float) -> Tensor:
    """Robust DPO (arXiv 2403.00409, eq. 12): unbiased under a known share `smoothing` < 0.5 of flipped labels."""
    flipped = smoothing * F.logsigmoid(-beta * gap_G)
    return (-(1 - smoothing) * F.logsigmoid(beta * gap_G) + flipped) / (1 - 2 * smoothing)


PREFERENCE_LOSSES: Mapping[str, PreferenceLoss] = {"sigmoid": sigmoid, "ipo": ipo, "hinge": hinge, "robust": robust}
