"""Log-probabilities of responses, in the one place that computes them: the head runs on response positions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Pass:
    """One weighted forward pass, up to its hidden states. `head` makes logits of them, with the tuner set as in the pass."""

    weight: float | Tensor
    head: Callable[[Tensor], Tensor]
    hidden_KD: Tensor

    def piece(self, tokens: slice) -> Pass:
        """The same for some of the tokens; a weight per token is cut likewise."""
        weight = self.weight[tokens] if isinstance(self.weight, Tensor) else self.weight
        return Pass(weight, self.head, self.hidden_KD[tokens])


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


def token_logprobs(passes: Sequence[Pass], target_K: Tensor) -> Tensor:
    """log p(target) in nats, fp32, of K tokens under the mixture of some passes; weights are numbers, or one per token.

    Logits exist for one chunk at a time and are made again for the gradient.
    """
    if len(target_K) <= CHUNK_TOKENS:
        return _scores(passes, target_K)
    recompute = torch.is_grad_enabled() and any(each.hidden_KD.requires_grad for each in passes)
    parts = []
    for begin in range(0, len(target_K), CHUNK_TOKENS):
        piece = slice(begin, begin + CHUNK_TOKENS)
        inputs = ([each.piece(piece) for each in passes], target_K[piece])
        parts.append(checkpoint(_scores, *inputs, use_reentrant=False) if recompute else _scores(*inputs))
    return torch.cat(parts)


def token_divergences(before: Pass, after: Pass) -> Tensor:
    """KL(before || after) of the next token in nats, fp32, at each of K positions; logits as in `token_logprobs`. No gradient
    goes to `before`."""
    parts = []
    for begin in range(0, len(after.hidden_KD), CHUNK_TOKENS):
        piece = slice(begin, begin + CHUNK_TOKENS)
        parts.append(checkpoint(_divergences, before.piece(piece), after.piece(piece), use_reentrant=False))
    return torch.cat(parts)


def sum_by_member(values_K: Tensor, member_K: Tensor, groups: int, members: int) -> Tensor:
    """Per-token values added up per member, shape groups x members."""
    return values_K.new_zeros(groups * members).index_add(0, member_K, values_K).reshape(groups, members)


def _divergences(before: Pass, after: Pass) -> Tensor:
    with torch.no_grad():
        before_KV = _mixed([before]).log_softmax(-1)
    after_KV = _mixed([after]).log_softmax(-1)
    return (before_KV.exp() * (before_KV - after_KV)).sum(-1)


def _scores(passes: Sequence[Pass], target_K: Tensor) -> Tensor:
    return -F.cross_entropy(_mixed(passes), target_K, reduction="none")


def _mixed(passes: Sequence[Pass]) -> Tensor:
    """Weighted sum of logits in fp32; a single pass of weight 1 is left as it is."""
    first = passes[0]
    if len(passes) == 1 and isinstance(first.weight, float) and first.weight == 1.0:
        return first.head(first.hidden_KD).float()
    logits_KV = torch.zeros((), device=first.hidden_KD.device)
    for each in passes:
        weight = each.weight[:, None] if isinstance(each.weight, Tensor) else each.weight
        logits_KV = logits_KV + weight * each.head(each.hidden_KD).float()
    return logits_KV
