"""Generation with a dial: one strength per row, one draw per text, whatever streams run behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignlab.models.backbone import Backbone
from alignlab.models.knob import Knob, Term
from alignlab.models.streams import Streams

DECODE_ROWS = 256
"""Rows that are generated together."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_p 1 keeps the whole distribution."""

    max_new_tokens: int
    temperature: float
    top_p: float


def answers(
    backbone: Backbone,
    knob: Knob,
    prompts: Sequence[tuple[int, ...]],
    batches: Iterable[tuple[list[int], Sequence[Term]]],
    sampling: Sampling,
    seed: int,
) -> list[str]:
    """The text that continues each prompt. batches: row numbers that are generated together, and their passes."""
    generator = torch.Generator().manual_seed(seed)
    uniform_BT = torch.rand(len(prompts), sampling.max_new_tokens, generator=generator).to(backbone.device)
    never = knob.controls.reserved if knob.controls else ()
    texts = [""] * len(prompts)
    with torch.inference_mode():
        for rows, terms in batches:
            streams = Streams(backbone.model, knob, terms, len(rows), backbone.device)
            begun = [prompts[row] for row in rows]
            for row, new_ids in zip(rows, decode(backbone, begun, streams, sampling, uniform_BT[rows], never), strict=True):
                texts[row] = backbone.codec.continuation(prompts[row], new_ids)
    return texts


def row_sets(knob: Knob, strengths: Sequence[float]) -> Iterator[list[int]]:
    """Row numbers that are generated together: all rows where the knob takes them mixed, else one strength at a time."""
    rows = list(range(len(strengths)))
    mixed = knob.per_row or not any(isinstance(term.setting, Tensor) for term in knob.terms(torch.tensor(strengths)))
    sets = [rows] if mixed else [[row for row in rows if strengths[row] == s] for s in dict.fromkeys(strengths)]
    for chosen in sets:
        for start in range(0, len(chosen), DECODE_ROWS):
            yield chosen[start : start + DECODE_ROWS]


def decode(
    backbone: Backbone,
    prompts: Sequence[tuple[int, ...]],
    streams: Streams,
    sampling: Sampling,
    uniform_BT: Tensor,
    never: Sequence[int] = (),
) -> list[list[int]]:
    """Continues each prompt until EOS or the limit; returns the new ids of each row, EOS left out.

    Prompts are padded on the left. uniform_BT: one number in [0, 1) per row and step, drawn by the caller, so that a row's
    text does not depend on what else is in its batch. never: ids that are not chosen.
    """
    ids_BT, mask_BT = _pad_left(prompts, backbone)
    step_BT, alive_B = ids_BT, torch.ones(len(prompts), dtype=torch.bool, device=backbone.device)
    chosen: list[Tensor] = []
    with streams:
        for step in range(sampling.max_new_tokens):
            logits_BV = streams.step(step_BT, mask_BT)
            logits_BV[:, list(never)] = -torch.inf
            token_B = _choose(logits_BV, sampling, uniform_BT[:, step])
            token_B = torch.where(alive_B, token_B, backbone.codec.eos)
            chosen.append(token_B)
            alive_B = alive_B & (token_B != backbone.codec.eos)
            if not bool(alive_B.any()):
                break
            step_BT = token_B[:, None]
            mask_BT = torch.cat([mask_BT, torch.ones_like(step_BT)], dim=1)
    return [_until_end(row, backbone.codec.eos) for row in torch.stack(chosen, dim=1).tolist()]


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
