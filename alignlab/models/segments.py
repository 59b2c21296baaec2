"""Attention over a batch without padding: all tokens in one row, each shared prefix once, and who sees whom in segments.

A segment is a run of tokens that ask (Q) and the tokens they see (K), the last Q of which are the askers themselves: a
prefix sees itself, the tail of a member sees its group's prefix and itself. Linear layers run on the real tokens only, and
attention costs sum of Q x K instead of rows x time x time. Segments of like size are computed together.

Shapes: N tokens of the batch, S segments of a chunk, Q askers, K seen, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

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
    """Segments of like size, padded to the largest. Numbers of tokens, flat; mask is additive S,1,Q,K."""

    ask_SQ: Tensor
    see_SK: Tensor
    mask_S1QK: Tensor


@dataclass(frozen=True)
class Segments:
    """All chunks of a batch. place_N: where each token's answer stands in the chunks' answers, laid one after the other."""

    chunks: tuple[Chunk, ...]
    place_N: Tensor

    @staticmethod
    def build(segments: Sequence[Segment], dtype: torch.dtype, device: torch.device) -> Segments:
        """Sorts segments by cost into chunks of equally many."""
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
        moved = [Chunk(c.ask_SQ.to(device), c.see_SK.to(device), c.mask_S1QK.to(device)) for c in chunks]
        return Segments(tuple(moved), place_N.to(device))


@contextmanager
def attending_in_segments(config: PretrainedConfig) -> Iterator[None]:
    """Inside, the model's attention is `attend`; its forward needs `segments=` among its keywords."""
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    segments: Segments,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query, key, value 1,H,N,D (fewer heads for grouped keys) to 1,N,H,D.

    Raises ModelError for attention that is more than softmax(QK)V.
    """
    special = [name for name in ("softcap", "s_aux", "sliding_window") if more.get(name) is not None]
    if special:
        raise ModelError(f"this model's attention uses {', '.join(special)}; set trainer.shared_prefix=false.")
    heads = query.shape[1]
    query_NHD, key_NHD, value_NHD = (_by_token(states, heads) for states in (query, key, value))
    answers = []
    for chunk in segments.chunks:
        answer_SHQD = F.scaled_dot_product_attention(
            _picked(query_NHD, chunk.ask_SQ),
            _picked(key_NHD, chunk.see_SK),
            _picked(value_NHD, chunk.see_SK),
            attn_mask=chunk.mask_S1QK,
            scale=scaling,
        )
        answers.append(answer_SHQD.transpose(1, 2).flatten(0, 1))
    return torch.cat(answers).index_select(0, segments.place_N)[None], None


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
    # The asker at place q stands at first + q among what it sees; padding askers see the first token, so none sees nothing.
    last_SQ = (first_S[:, None] + torch.arange(asked)).clamp(max=width_S[:, None] - 1)
    hidden_SQK = torch.arange(seen) > last_SQ[..., None]
    mask = torch.zeros(hidden_SQK.shape, dtype=dtype).masked_fill(hidden_SQK, torch.finfo(dtype).min)
    return Chunk(ask_SQ, see_SK, mask[:, None])


AttentionInterface.register(NAME, attend)
