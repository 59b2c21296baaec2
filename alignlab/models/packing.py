"""How a batch is laid into rows of a forward pass: one row per member, or all members in a single row without padding.

In a single row each common prefix stands once. Segments say which tokens attend to which: a run of queries (Q) and the tokens
they attend to (K), the last Q of which are the queries themselves. A prefix sees itself, the tail of a member sees its group's
prefix and itself. Linear layers run on the real tokens only, and attention costs the sum of Q x K instead of rows x time x
time. Segments of like size are computed together.

Shapes: G groups, M members, R rows, T time, K scored tokens (all response tokens of the batch). In attention: N tokens of the
batch, S segments of a chunk, Q askers, K seen, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import causal_mask_function

from alignlab.errors import ModelError
from alignlab.records import Batch

if TYPE_CHECKING:
    from alignlab.models.backbone import Backbone

NAME = "alignlab_segments"
CHUNKS = 4
"""Parts into which the segments of a batch are sorted by size: more means less padding and more small calls."""


@dataclass(frozen=True)
class Layout:
    """Rows for one forward pass, and where in them the response tokens are predicted.

    ids_RT. positions_RT: None = counted from 0. mask: R,T, ones also where rows are padded on the right, since under a causal
    mask no real token can see what stands behind it; models for which padding matters get zeros there. row_K, time_K: where the
    hidden state that predicts target_K stands. state_K: where the token itself stands. member_K: which of the G*M members it
    belongs to. group_R: which group a row belongs to, for strengths that differ by group; None where a row holds many. alone:
    whether each row needs a pass of its own. decoder_RU: what the decoder of an encoder-decoder model reads; the time of time_K
    and state_K is then the decoder's, that of the mask the encoder's. types_RT: which of two source texts a token belongs to,
    where a model asks.
    """

    ids_RT: Tensor
    positions_RT: Tensor | None
    mask: Tensor
    row_K: Tensor
    time_K: Tensor
    state_K: Tensor
    target_K: Tensor
    member_K: Tensor
    group_R: Tensor | None
    segments: Segments | None
    alone: bool = False
    decoder_RU: Tensor | None = None
    types_RT: Tensor | None = None

    def only(self, rows_R: Tensor) -> tuple[Layout, Tensor]:
        """Some of the rows (true in rows_R), padded no further than they need, and which of the K tokens are theirs."""
        assert self.mask is not None  # a single row has no rows to choose from
        chosen_K = rows_R[self.row_K]
        number_R = rows_R.cumsum(0) - 1
        width = int(self.mask[rows_R].sum(1).max())
        if self.decoder_RU is None and bool(chosen_K.any()):
            width = min(width, int(self.state_K[chosen_K].max()) + 1)
        picked = {name: getattr(self, name)[chosen_K] for name in ("time_K", "state_K", "target_K", "member_K")}
        some = replace(
            self,
            ids_RT=self.ids_RT[rows_R, :width],
            mask=self.mask[rows_R, :width],
            row_K=number_R[self.row_K[chosen_K]],
            group_R=None if self.group_R is None else self.group_R[rows_R],
            decoder_RU=None if self.decoder_RU is None else self.decoder_RU[rows_R],
            types_RT=None if self.types_RT is None else self.types_RT[rows_R, :width],
            **picked,
        )
        return some, chosen_K.nonzero()[:, 0]


def causal_rows(backbone: Backbone, batch: Batch, packing: str) -> Layout:
    """The rows of a causal model: all tokens in a single row where `packing` (off | pairs | all) asks for it and the model can
    do that, else a row per member. Rows whose lengths lie on both sides of a switch of rotary frequencies run alone."""
    able = backbone.abilities
    differ = able.switch is not None and int(batch.length_GM.min()) <= able.switch < int(batch.length_GM.max())
    if (packing == "all" or (packing == "pairs" and can_share(batch))) and not able.packed and not differ:
        return without_padding(batch, backbone.model.dtype)
    rows = one_row_per_member(batch, masked=bool(able.unmasked))
    return replace(rows, alone=True) if differ else rows


def one_row_per_member(batch: Batch, *, masked: bool = False) -> Layout:
    """Members as separate rows: R = G*M. `masked`: padding has zeros in the mask."""
    groups, members, time = batch.ids_GMT.shape
    device = batch.ids_GMT.device
    ids_RT = batch.ids_GMT.reshape(groups * members, time)
    clock_T = torch.arange(time, device=device)
    start_R1 = batch.start_GM.reshape(-1, 1).clamp(min=1)
    scored_RT = (clock_T >= start_R1) & (clock_T < batch.length_GM.reshape(-1, 1))
    row_K, state_K = scored_RT.nonzero(as_tuple=True)
    group_R = torch.arange(groups, device=device).repeat_interleave(members)
    mask_RT = (clock_T < batch.length_GM.reshape(-1, 1)).long() if masked else torch.ones_like(ids_RT)
    return Layout(ids_RT, None, mask_RT, row_K, state_K - 1, state_K, ids_RT[row_K, state_K], row_K, group_R, None)


def without_padding(batch: Batch, dtype: torch.dtype) -> Layout:
    """All real tokens in a single row, each prefix that several members share once: R = 1. Positions count on from the prefix
    in every tail. Needs prefix_G <= start_GM.
    """
    segments, place_N, (time_K, state_K, member_K) = _one_row(batch)
    ids_RT = batch.ids_GMT.flatten().index_select(0, place_N)[None]
    return Layout(
        ids_RT=ids_RT,
        positions_RT=(place_N % batch.ids_GMT.shape[2])[None],
        mask=torch.ones_like(ids_RT),
        row_K=torch.zeros_like(time_K),
        time_K=time_K,
        state_K=state_K,
        target_K=ids_RT[0, state_K],
        member_K=member_K,
        group_R=None,
        segments=Segments.build(segments, dtype, batch.ids_GMT.device),
    )


def _one_row(batch: Batch) -> tuple[list[Segment], Tensor, list[Tensor]]:
    """The segments of a single row; where each of its tokens stands in the flat ids_GMT, N; and time_K, state_K, member_K."""
    groups, members, width = batch.ids_GMT.shape
    # A member alone in its group has nobody to share with; its row is one segment.
    prefixes = batch.prefix_G.tolist() if members > 1 else [0] * groups
    lengths, starts = batch.length_GM.tolist(), batch.start_GM.tolist()
    segments: list[Segment] = []
    places: list[Tensor] = []
    scored: list[tuple[Tensor, Tensor, Tensor]] = []
    end = 0
    for group in range(groups):
        prefix = range(end, end + prefixes[group])
        if prefix:
            segments.append(Segment(prefix, (prefix,)))
        places.append(torch.arange(len(prefix)) + group * members * width)
        end = prefix.stop
        for member in range(members):
            tail = range(end, end + lengths[group][member] - len(prefix))
            number = group * members + member
            segments.append(Segment(tail, (prefix, tail)))
            places.append(torch.arange(len(prefix), len(prefix) + len(tail)) + number * width)
            state = torch.arange(max(starts[group][member], 1) - len(prefix), len(tail)) + tail.start
            time = torch.where(state > tail.start, state - 1, prefix.stop - 1)
            scored.append((time, state, torch.full_like(state, number)))
            end = tail.stop
    device = batch.ids_GMT.device
    return segments, torch.cat(places).to(device), [torch.cat(parts).to(device) for parts in zip(*scored, strict=True)]


def member_of_tokens(batch: Batch) -> Tensor:
    """The number of the member that each response token belongs to, K; tokens as in `Layout`, groups after one another."""
    members = batch.ids_GMT.shape[1]
    tokens_R = (batch.length_GM - batch.start_GM.clamp(min=1)).flatten()
    return torch.arange(len(tokens_R), device=tokens_R.device).remainder(members).repeat_interleave(tokens_R)


def can_share(batch: Batch) -> bool:
    """Whether every group has several members and a common prefix."""
    return batch.ids_GMT.shape[1] > 1 and bool((batch.prefix_G > 0).all())


def described(packing: str, objection: str, attention: str) -> str:
    """How batches are laid into rows, as a sentence. `objection`: to rows laid into one."""
    if packing == "off":
        return "one row per member, as trainer.packing=off asks"
    if objection:
        return f"one row per member under {attention} attention; not in one row without padding: {objection}"
    which = "pairs" if packing == "pairs" else "all batches"
    instead = "" if attention == "sdpa" else f" in place of {attention}"
    return f"{which} in one row without padding, common prompts once; sdpa attention in segments{instead}"


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
    ahead: Sequence[Tensor] | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query, key, value 1,H,N,D (fewer heads for grouped keys) to 1,N,H,D. `ahead`:
    P more keys and values that every asker sees, likewise 1,H,P,D.

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
        key_SHKD, value_SHKD = _picked(key_NHD, chunk.see_SK), _picked(value_NHD, chunk.see_SK)
        if ahead is not None:
            key_SHKD, value_SHKD = _behind(ahead[0], key_SHKD), _behind(ahead[1], value_SHKD)
            mask_S1QK = F.pad(mask_S1QK, (ahead[0].shape[2], 0))  # zeros: seen by all
        answer_SHQD = F.scaled_dot_product_attention(
            _picked(query_NHD, chunk.ask_SQ),
            key_SHKD,
            value_SHKD,
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


def _behind(ahead_1HPD: Tensor, states_SHKD: Tensor) -> Tensor:
    """The states of each segment behind P others, which grouped heads share likewise."""
    segments, heads = states_SHKD.shape[:2]
    repeated = ahead_1HPD.repeat_interleave(heads // ahead_1HPD.shape[1], dim=1)
    return torch.cat([repeated.expand(segments, -1, -1, -1), states_SHKD], dim=2)


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
