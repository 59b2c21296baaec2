"""Log-probabilities of many groups, batch by batch: what references, suites and guards have in common."""

from __future__ import annotations

from collections.abc import Sequence

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
    total_NM = torch.zeros(len(groups), len(groups[0].members))
    mean_NM = torch.zeros_like(total_NM)
    longest = max(group.length for group in groups)
    at_most = policy.budget.groups(total_NM.shape[1], longest, rows_per_pass)
    for rows in in_order(groups, at_most):
        batch = whole([groups[row] for row in rows], policy.backbone.codec.pad).to(policy.backbone.device)
        scores = policy.logprobs(batch)
        total_NM[rows] = scores.total_GM.float().cpu()
        mean_NM[rows] = scores.mean_GM.float().cpu()
    return total_NM, mean_NM
