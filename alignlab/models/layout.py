"""How a batch is laid into rows of a forward pass: one row per member, or a single row without padding, common prefixes once.

Shapes: G groups, M members, R rows, T time, K scored tokens (all response tokens of the batch).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from alignlab.models.segments import Segment, Segments
from alignlab.records import Batch


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
    groups, members, _ = batch.ids_GMT.shape
    device = batch.ids_GMT.device
    # A member alone in its group has nobody to share with; its row is one segment.
    prefixes = batch.prefix_G.tolist() if members > 1 else [0] * groups
    lengths, starts = batch.length_GM.tolist(), batch.start_GM.tolist()
    segments: list[Segment] = []
    picked: list[Tensor] = []  # places in the flat ids_GMT
    predicted: list[Tensor] = []
    standing: list[Tensor] = []
    owners: list[Tensor] = []
    end, width = 0, batch.ids_GMT.shape[2]
    for group in range(groups):
        prefix = range(end, end + prefixes[group])
        if prefix:
            segments.append(Segment(prefix, (prefix,)))
        picked.append(torch.arange(len(prefix)) + group * members * width)
        end = prefix.stop
        for member in range(members):
            tail = range(end, end + lengths[group][member] - len(prefix))
            segments.append(Segment(tail, (prefix, tail)))
            picked.append(torch.arange(len(prefix), len(prefix) + len(tail)) + (group * members + member) * width)
            first = max(starts[group][member], 1) - len(prefix)
            state = torch.arange(first, len(tail)) + tail.start
            predicted.append(torch.where(state > tail.start, state - 1, prefix.stop - 1))
            standing.append(state)
            owners.append(torch.full_like(state, group * members + member))
            end = tail.stop
    place_N = torch.cat(picked).to(device)
    time_K, state_K, member_K = (torch.cat(parts).to(device) for parts in (predicted, standing, owners))
    ids_RT = batch.ids_GMT.flatten().index_select(0, place_N)[None]
    return Layout(
        ids_RT=ids_RT,
        positions_RT=(place_N % width)[None],
        mask=torch.ones_like(ids_RT),
        row_K=torch.zeros_like(time_K),
        time_K=time_K,
        state_K=state_K,
        target_K=ids_RT[0, state_K],
        member_K=member_K,
        group_R=None,
        segments=Segments.build(segments, dtype, device),
    )


def member_of_tokens(batch: Batch) -> Tensor:
    """The number of the member that each response token belongs to, K; tokens as in `Layout`, groups after one another."""
    members = batch.ids_GMT.shape[1]
    tokens_R = (batch.length_GM - batch.start_GM.clamp(min=1)).flatten()
    return torch.arange(len(tokens_R), device=tokens_R.device).remainder(members).repeat_interleave(tokens_R)


def can_share(batch: Batch) -> bool:
    """Whether every group has several members and a common prefix."""
    return batch.ids_GMT.shape[1] > 1 and bool((batch.prefix_G > 0).all())
