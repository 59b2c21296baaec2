"""Log-probabilities of many groups, batch by batch: what references, suites and guards have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from alignlab.data.batching import in_order, whole
from alignlab.models.policy import Policy
from alignlab.records import EncodedGroup


def scored(policy: Policy, groups: Sequence[EncodedGroup], rows_per_pass: int) -> tuple[Tensor, Tensor]:
    """log p(response | prompt) in nats, summed and per token, groups x members, fp32 on the CPU, in the order of the groups.

    The policy is as the caller has set it; batches are formed by length, `rows_per_pass` groups each or as many as the policy's
    budget has room for.
    """
    longest = max(group.length for group in groups)
    at_most = policy.budget.groups(len(groups[0].members), longest, rows_per_pass)
    return scored_in(policy, groups, in_order(groups, at_most))


def scored_in(policy: Policy, groups: Sequence[EncodedGroup], batches: Iterable[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The same in given batches of numbers of groups. What stands in several has its values from the first of them, and zeros
    where it stands in none."""
    total_NM = torch.zeros(len(groups), len(groups[0].members))
    mean_NM = torch.zeros_like(total_NM)
    done: set[int] = set()
    for rows in batches:
        new = [place for place, row in enumerate(rows) if row not in done]
        if not new:
            continue
        batch = whole([groups[row] for row in rows], policy.backbone.codec.pad).to(policy.backbone.device)
        scores = policy.logprobs(batch)
        chosen = [rows[place] for place in new]
        total_NM[chosen] = scores.total_GM.float().cpu()[new]
        mean_NM[chosen] = scores.mean_GM.float().cpu()[new]
        done.update(chosen)
    return total_NM, mean_NM
