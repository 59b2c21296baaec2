"""Attention over a batch without padding: all tokens in one row, each shared prefix once, and who sees whom in segments.

A segment is a run of tokens that ask (Q) and the tokens they see (K), the last Q of which are the askers themselves: a
prefix sees itself, the tail of a member sees its group's prefix and itself. Linear layers run on the real tokens only, and
attention costs sum of Q x K instead of rows x time x time. Segments of like size are computed together.

Shapes: N tokens of the batch, S segments of a chunk, Q askers, K seen, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import causal_mask_function

from alignlab.errors import ModelError

NAME = "alignlab_segments"
CHUNKS = 4
"""Parts into which the segments of a batch are sorted by size: more means less padding and more small calls."""


@dataclass(frozen=True)
class Segment:
    """Token numbers: `asks` are the last ones of `sees`."""

    asks: range
    sees: tuple[range, ...]

    @property
    def width(self) -> int:
        """Tokens seen."""
        return sum(len(part) for part in self.sees)


@dataclass(frozen=True)
class Chunk:
    """Segments of like size, padded to the largest. Numbers of tokens, flat; mask is additive S,1,Q,K. place_SQ: where each
    asker stands among what it sees, and so in its text."""

    ask_SQ: Tensor
    see_SK: Tensor
    place_SQ: Tensor
    mask_S1QK: Tensor


@dataclass(frozen=True)
class Segments:
    """All chunks of a batch. place_N: where each token's answer stands in the chunks' answers, laid one after the other."""

    chunks: tuple[Chunk, ...]
    place_N: Tensor

    @staticmethod
    def build(segments: Sequence[Segment], dtype: torch.dtype, device: torch.device) -> Segments:
        """Sorts segments by cost into chunks of equally many. What a segment sees is a text from its start."""
        order = sorted(segments, key=lambda segment: (segment.width * len(segment.asks), segment.asks.start))
        size = -(-len(order) // CHUNKS)
        chunks = [_chunk(order[begin : begin + size], dtype) for begin in range(0, len(order), size)]
        place_N = torch.zeros(sum(len(segment.asks) for segment in segments), dtype=torch.long)
        offset = 0
        for begin, chunk in zip(range(0, len(order), size), chunks, strict=True):
            width = chunk.ask_SQ.shape[1]
            for row, segment in enumerate(order[begin : begin + size]):
                first = offset + row * width
                place_N[segment.asks.start : segment.asks.stop] = torch.arange(first, first + len(segment.asks))
            offset += chunk.ask_SQ.numel()
        moved = [Chunk(*(part.to(device) for part in (c.ask_SQ, c.see_SK, c.place_SQ, c.mask_S1QK))) for c in chunks]
        return Segments(tuple(moved), place_N.to(device))


@dataclass(frozen=True)
class Seen:
    """What each asker sees where that is less than all tokens before it (a window): an additive mask S,1,Q,K per chunk."""

    mask_S1QK: tuple[Tensor, ...]


_ACTIVE: ContextVar[Segments] = ContextVar(NAME)


@contextmanager
def attending(config: PretrainedConfig, segments: Segments) -> Iterator[None]:
    """Inside, the attention of models that read `config` is `attend`, over these segments."""
    before, token = config._attn_implementation, _ACTIVE.set(segments)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _ACTIVE.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Seen | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query, key, value 1,H,N,D (fewer heads for grouped keys) to 1,N,H,D.

    Raises ModelError for attention that is more than softmax(QK)V, and for a mask that is the model's own.
    """
    special = [name for name in ("softcap", "s_aux") if more.get(name) is not None]
    if special or not isinstance(attention_mask, Seen | None):
        raise ModelError(
            f"this model's attention uses {', '.join(special) or 'a mask of its own'}, which segments do not have."
        )
    heads, segments = query.shape[1], _ACTIVE.get()
    masks = attention_mask.mask_S1QK if attention_mask else [chunk.mask_S1QK for chunk in segments.chunks]
    query_NHD, key_NHD, value_NHD = (_by_token(states, heads) for states in (query, key, value))
    answers = []
    for chunk, mask_S1QK in zip(segments.chunks, masks, strict=True):
        answer_SHQD = F.scaled_dot_product_attention(
            _picked(query_NHD, chunk.ask_SQ),
            _picked(key_NHD, chunk.see_SK),
            _picked(value_NHD, chunk.see_SK),
            attn_mask=mask_S1QK,
            scale=scaling,
        )
        answers.append(answer_SHQD.transpose(1, 2).flatten(0, 1))
    return torch.cat(answers).index_select(0, segments.place_N)[None], None


def visible(*, mask_function: Any, **_: Any) -> Seen | None:
    """transformers' mask interface: what a layer's rule (a window, a chunk of the text) leaves of the segments, places counted
    in each text. None: all of it."""
    if mask_function is causal_mask_function:
        return None
    masks = []
    for chunk in _ACTIVE.get().chunks:
        seen_K = torch.arange(chunk.see_SK.shape[1], device=chunk.see_SK.device)
        rule_SQK = mask_function(0, 0, chunk.place_SQ[..., None], seen_K)
        masks.append(chunk.mask_S1QK.masked_fill(~rule_SQK[:, None], torch.finfo(chunk.mask_S1QK.dtype).min))
    return Seen(tuple(masks))


def _by_token(states: Tensor, heads: int) -> Tensor:
    """1,h,N,D to N,H,D; grouped keys and values are repeated for the heads that share them."""
    repeated = states.repeat_interleave(heads // states.shape[1], dim=1)
    return repeated[0].transpose(0, 1)


def _picked(states_NHD: Tensor, index: Tensor) -> Tensor:
    """The states of some tokens, S,H,T,D. index_select, since its gradient is much cheaper than that of indexing."""
    return states_NHD.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def _chunk(segments: Sequence[Segment], dtype: torch.dtype) -> Chunk:
    asked = max(len(segment.asks) for segment in segments)
    seen = max(segment.width for segment in segments)
    ask_SQ = torch.zeros(len(segments), asked, dtype=torch.long)
    see_SK = torch.zeros(len(segments), seen, dtype=torch.long)
    width_S = torch.tensor([segment.width for segment in segments])
    first_S = width_S - torch.tensor([len(segment.asks) for segment in segments])
    for row, segment in enumerate(segments):
        ask_SQ[row, : len(segment.asks)] = torch.tensor(segment.asks)
        see_SK[row, : segment.width] = torch.cat([torch.tensor(part, dtype=torch.long) for part in segment.sees])
    # The asker at place q stands at first + q among what it sees; padding askers see as much as the last one.
    place_SQ = (first_S[:, None] + torch.arange(asked)).clamp(max=width_S[:, None] - 1)
    hidden_SQK = torch.arange(seen) > place_SQ[..., None]
    mask = torch.zeros(hidden_SQK.shape, dtype=dtype).masked_fill(hidden_SQK, torch.finfo(dtype).min)
    return Chunk(ask_SQ, see_SK, place_SQ, mask[:, None])


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, visible)
