"""Reference log-probabilities, computed once: kept in the store under a hash of everything that decides them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignlab.data.batching import in_order
from alignlab.models.policy import Policy
from alignlab.models.scoring import scored, scored_in
from alignlab.records import EncodedGroup

log = logging.getLogger(__name__)
ROWS_PER_PASS = 16
CHECKED_ROWS = 8
TOLERANCE_NATS = 1e-3
RELATIVE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""How far a stored value may lie from its recomputation: other batch shapes round differently, by dtype."""

Batching = Sequence[Sequence[int]]
"""Numbers of the groups of each batch."""


def with_references(
    groups: Sequence[EncodedGroup],
    policy: Policy,
    store: Path,
    *,
    weights: str,
    inside: AbstractContextManager[None],
    trained_in: Batching | None = None,
) -> list[EncodedGroup]:
    """The groups with each member's log-probability under the reference (`inside` makes the policy the reference).

    Ids decide the key, so tokenizer, template, data and length policy are in it; `weights` names the weights. Eight rows of
    a stored file are computed again, and a file that disagrees is not used.

    `trained_in`: the batches of the training. Another batch rounds otherwise, in bfloat16 by tenths of a nat per response, so
    below float32 each group is computed in the batch that trains it first, and those that none trains have no reference.
    """
    batches = None if trained_in is None or policy.backbone.model.dtype == torch.float32 else trained_in
    path = store / "references" / f"{_key(groups, weights, _rounding(policy, batches))}.safetensors"
    rows = sorted({row for batch in batches for row in batch}) if batches else list(range(len(groups)))
    with torch.no_grad(), inside:
        stored = _stored(path)
        if stored is not None and _agrees(groups, rows, stored, policy):
            log.info("reference log-probabilities: read from the store")
            return _joined(groups, rows, stored)
        log.info("reference log-probabilities: computed once for %d rows", len(rows))
        total_NM = scored_in(policy, groups, batches or in_order(groups, ROWS_PER_PASS))[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    save_file({"total_NM": total_NM}, unfinished)
    unfinished.replace(path)
    return _joined(groups, rows, total_NM)


def _stored(path: Path) -> Tensor | None:
    """What an earlier run left; None where there is no file or it cannot be read."""
    try:
        return load_file(path)["total_NM"] if path.is_file() else None
    except (SafetensorError, KeyError):
        return None


def _rounding(policy: Policy, batches: Batching | None) -> list[object]:
    """What decides how a value is rounded, where that has to be the rounding of the training."""
    if batches is None:
        return []
    attention = policy.backbone.model.config._attn_implementation
    return [policy.packing, attention, policy.backbone.device.type, [list(batch) for batch in batches]]


def _key(groups: Sequence[EncodedGroup], weights: str, rounding: Sequence[object]) -> str:
    digest = hashlib.sha256(weights.encode())
    for group in groups:
        digest.update(json.dumps([[member.ids, member.start] for member in group.members]).encode())
    if rounding:
        digest.update(json.dumps(rounding).encode())
    return digest.hexdigest()[:24]


def _agrees(groups: Sequence[EncodedGroup], rows: Sequence[int], stored_NM: Tensor, policy: Policy) -> bool:
    if len(stored_NM) != len(groups):
        return False
    looked = list(rows[:: max(1, len(rows) // CHECKED_ROWS)][:CHECKED_ROWS])
    again_NM = scored(policy, [groups[row] for row in looked], ROWS_PER_PASS)[0]
    allowed_NM = TOLERANCE_NATS + RELATIVE_TOLERANCE[policy.backbone.model.dtype] * again_NM.abs()
    return bool(((again_NM - stored_NM[looked]).abs() <= allowed_NM).all())


def _joined(groups: Sequence[EncodedGroup], rows: Sequence[int], total_NM: Tensor) -> list[EncodedGroup]:
    joined = list(groups)
    for row in rows:
        joined[row] = replace(groups[row], reference=tuple(total_NM[row].tolist()))
    return joined
