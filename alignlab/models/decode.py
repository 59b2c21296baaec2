"""Generation with a dial: weighted passes mixed at the logits, one strength per row, one draw per text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignlab.models.backbone import Backbone
from alignlab.models.knob import Strength, Term


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_p 1 keeps the whole distribution."""

    max_new_tokens: int
    temperature: float
    top_p: float


@dataclass
class _Stream:
    """One term's own pass: its weight, its setting and its cache."""

    term: Term
    cache: Any = None


def decode(
    backbone: Backbone,
    prompts: Sequence[tuple[int, ...]],
    terms: Sequence[Term],
    at: Callable[[Strength], AbstractContextManager[None]],
    sampling: Sampling,
    uniform_BT: Tensor,
) -> list[list[int]]:
    """Continues each prompt until EOS or the limit; returns the new ids of each row, EOS left out.

    Prompts are padded on the left. uniform_BT: one number in [0, 1) per row and step, drawn by the caller, so that a row's
    text does not depend on what else is in its batch. The mix happens in fp32 before anything else reads the logits.
    """
    each_step = at if len(terms) > 1 else _unturned
    ids_BT, mask_BT = _pad_left(prompts, backbone)
    streams = [_Stream(term) for term in terms]
    step_BT, alive_B = ids_BT, torch.ones(len(prompts), dtype=torch.bool, device=backbone.device)
    chosen: list[Tensor] = []
    with ExitStack() as turned_once:
        if len(terms) == 1:  # one setting for every step
            turned_once.enter_context(at(terms[0].setting))
        for step in range(sampling.max_new_tokens):
            logits_BV = sum(_weighted(backbone, stream, step_BT, mask_BT, each_step) for stream in streams)
            assert isinstance(logits_BV, Tensor)
            token_B = _choose(logits_BV, sampling, uniform_BT[:, step])
            token_B = torch.where(alive_B, token_B, backbone.codec.eos)
            chosen.append(token_B)
            alive_B = alive_B & (token_B != backbone.codec.eos)
            if not bool(alive_B.any()):
                break
            step_BT = token_B[:, None]
            mask_BT = torch.cat([mask_BT, torch.ones_like(step_BT)], dim=1)
    return [_until_end(row, backbone.codec.eos) for row in torch.stack(chosen, dim=1).tolist()]


def _unturned(_setting: Strength) -> AbstractContextManager[None]:
    return nullcontext()


def _weighted(
    backbone: Backbone,
    stream: _Stream,
    step_BT: Tensor,
    mask_BT: Tensor,
    at: Callable[[Strength], AbstractContextManager[None]],
) -> Tensor:
    """The last position's logits of one stream, fp32, times its weight."""
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -step_BT.shape[1] :]
    with at(stream.term.setting):
        output = backbone.model(
            input_ids=step_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=stream.cache,
            use_cache=True,
            logits_to_keep=1,
        )
    stream.cache = output.past_key_values
    weight = stream.term.weight
    return output.logits[:, -1].float() * (weight[:, None] if isinstance(weight, Tensor) else weight)


def _choose(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> Tensor:
    """Greedy, or one draw per row by inverting the cumulative distribution over descending probabilities."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    sorted_BV, order_BV = (logits_BV / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    cumulative_BV = sorted_BV.double().softmax(-1).cumsum(-1)
    # top_p keeps the smallest set whose mass reaches it; the draw is scaled to that mass.
    inside_BV = (cumulative_BV - sorted_BV.double().softmax(-1)) < sampling.top_p
    mass_B = torch.where(inside_BV, cumulative_BV, 0.0).amax(-1)
    drawn_B1 = torch.searchsorted(cumulative_BV, (uniform_B.double() * mass_B)[:, None], right=True)
    last_B1 = inside_BV.sum(-1, keepdim=True) - 1
    return order_BV.gather(1, torch.minimum(drawn_B1, last_B1))[:, 0]


def _pad_left(prompts: Sequence[tuple[int, ...]], backbone: Backbone) -> tuple[Tensor, Tensor]:
    width = max(1, *(len(prompt) for prompt in prompts))
    ids_BT = torch.full((len(prompts), width), backbone.codec.pad)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask_BT[row, width - len(prompt) :] = 1
    return ids_BT.to(backbone.device), mask_BT.to(backbone.device)


def _until_end(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos)] if eos in ids else ids
