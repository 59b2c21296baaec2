"""Log-probabilities of responses, in the one place that computes them: the head runs on response positions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Passes = Sequence[tuple["float | Tensor", Tensor]]

CHUNK_TOKENS = 2048
"""Response tokens whose logits exist at the same time; at 128k vocabulary and fp32 about 1 GB."""


@dataclass(frozen=True)
class Logprobs:
    """Log-probability (nats) of each response, summed over its tokens, and how many tokens it has, EOS included."""

    total_GM: Tensor
    tokens_GM: Tensor

    @property
    def mean_GM(self) -> Tensor:
        """Nats per response token."""
        return self.total_GM / self.tokens_GM.clamp(min=1)


def token_logprobs(head: Callable[[Tensor], Tensor], passes: Passes, target_K: Tensor, group_K: Tensor) -> Tensor:
    """log p(target) in nats, fp32, of K tokens under the mixture of some passes: (weight, hidden_KD) each.

    A weight is a number, or a tensor with one per group (group_K says whose token it is). Logits exist for one chunk at a
    time and are made again for the gradient.
    """
    weights = [weight[group_K] if isinstance(weight, Tensor) else weight for weight, _ in passes]
    hidden = [hidden_KD for _, hidden_KD in passes]
    if len(target_K) <= CHUNK_TOKENS:
        return _scores(head, target_K, weights, hidden)
    recompute = torch.is_grad_enabled() and any(hidden_KD.requires_grad for hidden_KD in hidden)
    parts = []
    for begin in range(0, len(target_K), CHUNK_TOKENS):
        piece = slice(begin, begin + CHUNK_TOKENS)
        inputs = (
            head,
            target_K[piece],
            [weight[piece] if isinstance(weight, Tensor) else weight for weight in weights],
            [hidden_KD[piece] for hidden_KD in hidden],
        )
        parts.append(checkpoint(_scores, *inputs, use_reentrant=False) if recompute else _scores(*inputs))
    return torch.cat(parts)


def sum_by_member(values_K: Tensor, member_K: Tensor, groups: int, members: int) -> Tensor:
    """Per-token values added up per member, shape groups x members."""
    return values_K.new_zeros(groups * members).index_add(0, member_K, values_K).reshape(groups, members)


def _scores(head: Callable[[Tensor], Tensor], target_K: Tensor, weights: list[float | Tensor], hidden: list[Tensor]) -> Tensor:
    logits_KV = _mixed(head, weights, hidden)
    return -F.cross_entropy(logits_KV, target_K, reduction="none")


def _mixed(head: Callable[[Tensor], Tensor], weights: list[float | Tensor], hidden: list[Tensor]) -> Tensor:
    """Weighted sum of logits in fp32; a single pass of weight 1 is left as it is."""
    if len(hidden) == 1 and isinstance(weights[0], float) and weights[0] == 1.0:
        return head(hidden[0]).float()
    columns = [weight[:, None] if isinstance(weight, Tensor) else weight for weight in weights]
    return sum(  # type: ignore[return-value]
        weight * head(hidden_KD).float() for weight, hidden_KD in zip(columns, hidden, strict=True)
    )
