"""How a batch is laid into rows of a forward pass: one row per member, or one row per group with its prefix once.

Shapes: G groups, M members, R rows, T time, K scored tokens (all response tokens of the batch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignlab.records import Batch


@dataclass(frozen=True)
class Layout:
    """Rows for one forward pass, and where in them the response tokens are predicted.

    ids_RT. positions_RT: None = counted from 0. mask: additive R,1,T,T, or ones R,T, since rows are padded on the right and
    under a causal mask no real token can see what stands behind it. row_K, time_K: where the hidden state that predicts
    target_K stands. state_K: where the token itself stands. member_K: which of the G*M members it belongs to. group_R: which
    group a row belongs to, for strengths that differ by group.
    """

    ids_RT: Tensor
    positions_RT: Tensor | None
    mask: Tensor
    row_K: Tensor
    time_K: Tensor
    state_K: Tensor
    target_K: Tensor
    member_K: Tensor
    group_R: Tensor


def one_row_per_member(batch: Batch) -> Layout:
    """Members as separate rows: R = G*M."""
    groups, members, time = batch.ids_GMT.shape
    device = batch.ids_GMT.device
    ids_RT = batch.ids_GMT.reshape(groups * members, time)
    clock_T = torch.arange(time, device=device)
    start_R1 = batch.start_GM.reshape(-1, 1).clamp(min=1)
    scored_RT = (clock_T >= start_R1) & (clock_T < batch.length_GM.reshape(-1, 1))
    row_K, state_K = scored_RT.nonzero(as_tuple=True)
    group_R = torch.arange(groups, device=device).repeat_interleave(members)
    return Layout(ids_RT, None, torch.ones_like(ids_RT), row_K, state_K - 1, state_K, ids_RT[row_K, state_K], row_K, group_R)


def one_row_per_group(batch: Batch, dtype: torch.dtype) -> Layout:
    """Members behind their shared prefix, R = G: each tail sees the prefix and itself, and counts positions on from it.

    Needs prefix_G <= start_GM and at least one shared token per group, which `can_share` tells.
    """
    groups, members, time = batch.ids_GMT.shape
    device = batch.ids_GMT.device
    clock_T = torch.arange(time, device=device)
    prefix_G1 = batch.prefix_G[:, None]
    tail_GM = batch.length_GM - prefix_G1
    offset_GM = prefix_G1 + tail_GM.cumsum(1) - tail_GM
    # Where each token of each member goes in the packed row; prefix tokens of members after the first are left out.
    place_GMT = torch.where(clock_T < prefix_G1[..., None], clock_T, offset_GM[..., None] + clock_T - prefix_G1[..., None])
    first_M1 = (torch.arange(members, device=device) == 0)[:, None]
    real_GMT = clock_T < batch.length_GM[..., None]
    kept_GMT = real_GMT & (first_M1 | (clock_T >= prefix_G1[..., None]))
    group_K, member_K, time_K = kept_GMT.nonzero(as_tuple=True)
    width = int((offset_GM[:, -1] + tail_GM[:, -1]).max())
    place_K = place_GMT[kept_GMT]

    ids_RT = batch.ids_GMT.new_zeros(groups, width)
    positions_RT = ids_RT.clone()
    owner_RT = torch.full_like(ids_RT, members)  # who a token belongs to: -1 everyone (prefix), 0..M-1, M padding
    ids_RT[group_K, place_K] = batch.ids_GMT[kept_GMT]
    positions_RT[group_K, place_K] = time_K
    owner_RT[group_K, place_K] = torch.where(time_K < batch.prefix_G[group_K], -1, member_K)
    row_K, owner_K, state_K, before_K = _scored(batch, place_GMT, real_GMT)
    return Layout(
        ids_RT,
        positions_RT,
        _block_mask(owner_RT, dtype),
        row_K,
        before_K,
        state_K,
        ids_RT[row_K, state_K],
        row_K * members + owner_K,
        torch.arange(groups, device=device),
    )


def can_share(batch: Batch) -> bool:
    """Whether packing a group into one row saves anything and is defined for every group."""
    return batch.ids_GMT.shape[1] > 1 and bool((batch.prefix_G > 0).all())


def _scored(batch: Batch, place_GMT: Tensor, real_GMT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Group, member, place and predicting place of every response token."""
    clock_T = torch.arange(place_GMT.shape[-1], device=place_GMT.device)
    scored_GMT = real_GMT & (clock_T >= batch.start_GM[..., None].clamp(min=1))
    group_K, member_K, time_K = scored_GMT.nonzero(as_tuple=True)
    return group_K, member_K, place_GMT[group_K, member_K, time_K], place_GMT[group_K, member_K, time_K - 1]


def _block_mask(owner_RT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask R,1,T,T: causal, and a token sees the prefix and tokens of its own member only."""
    width = owner_RT.shape[1]
    causal_TT = torch.ones(width, width, dtype=torch.bool, device=owner_RT.device).tril()
    same_RTT = owner_RT[:, :, None] == owner_RT[:, None, :]
    seen_RTT = causal_TT & (same_RTT | (owner_RT == -1)[:, None, :])
    blocked = torch.finfo(dtype).min
    return torch.zeros(seen_RTT.shape, dtype=dtype, device=owner_RT.device).masked_fill(~seen_RTT, blocked)[:, None]
