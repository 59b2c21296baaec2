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

from alignlab.models.policy import Policy
from alignlab.records import EncodedGroup
from alignlab.scoring import scored

log = logging.getLogger(__name__)
ROWS_PER_PASS = 16
CHECKED_ROWS = 8
TOLERANCE_NATS = 1e-3
RELATIVE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""How far a stored value may lie from its recomputation: other batch shapes round differently, by dtype."""


def with_references(
    groups: Sequence[EncodedGroup], policy: Policy, store: Path, *, weights: str, inside: AbstractContextManager[None]
) -> list[EncodedGroup]:
    """The groups with each member's log-probability under the reference (`inside` makes the policy the reference).

    Ids decide the key, so tokenizer, template, data and length policy are in it; `weights` names the weights. Eight rows of
    a stored file are computed again, and a file that disagrees is not used.
    """
    path = store / "references" / f"{_key(groups, weights)}.safetensors"
    with torch.no_grad(), inside:
        stored = _stored(path)
        if stored is not None and _agrees(groups, stored, policy):
            log.info("reference log-probabilities: read from the store")
            return _joined(groups, stored)
        log.info("reference log-probabilities: computed once for %d rows", len(groups))
        total_NM = _computed(groups, range(len(groups)), policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    save_file({"total_NM": total_NM}, unfinished)
    unfinished.replace(path)
    return _joined(groups, total_NM)


def _stored(path: Path) -> Tensor | None:
    """What an earlier run left; None where there is no file or it cannot be read."""
    try:
        return load_file(path)["total_NM"] if path.is_file() else None
    except (SafetensorError, KeyError):
        return None


def _key(groups: Sequence[EncodedGroup], weights: str) -> str:
    digest = hashlib.sha256(weights.encode())
    for group in groups:
        digest.update(json.dumps([[member.ids, member.start] for member in group.members]).encode())
    return digest.hexdigest()[:24]


def _agrees(groups: Sequence[EncodedGroup], stored_NM: Tensor, policy: Policy) -> bool:
    if len(stored_NM) != len(groups):
        return False
    step = max(1, len(groups) // CHECKED_ROWS)
    rows = range(0, len(groups), step)[:CHECKED_ROWS]
    again_NM = _computed(groups, rows, policy)
    allowed_NM = TOLERANCE_NATS + RELATIVE_TOLERANCE[policy.backbone.model.dtype] * again_NM.abs()
    return bool(((again_NM - stored_NM[list(rows)]).abs() <= allowed_NM).all())


def _computed(groups: Sequence[EncodedGroup], rows: Sequence[int], policy: Policy) -> Tensor:
    chosen = [groups[row] for row in rows]
    return scored(policy, chosen, ROWS_PER_PASS)[0]


def _joined(groups: Sequence[EncodedGroup], total_NM: Tensor) -> list[EncodedGroup]:
    return [replace(group, reference=tuple(row)) for group, row in zip(groups, total_NM.tolist(), strict=True)]
