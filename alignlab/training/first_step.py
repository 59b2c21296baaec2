"""The first loss, known beforehand where the policy starts as its own reference: an error in the reference shows there."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from alignlab.errors import FirstLossError
from alignlab.models.policy import Policy
from alignlab.records import Batch, Loss
from alignlab.training import processes

TOLERANCE = 1e-4
"""How far the first loss may lie from the known one; of a loss above 1, this share of it."""


@runtime_checkable
class Referenced(Protocol):
    """An objective that compares the policy with a reference."""

    def first_loss(self, policy: Policy) -> float | None:
        """What it is per pair while the policy is its own reference; None where it is not at the first step."""

    def preference_per_pair(self, loss: Loss, batch: Batch) -> float:
        """What it is per pair on this batch."""


def check_first_loss(stage: str, objective: object, policy: Policy, loss: Loss, batch: Batch) -> None:
    """Raises FirstLossError where a loss of the first step is not the known one. In every process, or in none of them."""
    known = objective.first_loss(policy) if isinstance(objective, Referenced) else None
    if known is None:
        return
    assert isinstance(objective, Referenced)
    for found in processes.gathered(objective.preference_per_pair(loss, batch)):
        if abs(found - known) > TOLERANCE * max(1.0, known):
            raise FirstLossError(
                f"stage {stage}: the first preference loss is {found:.6g} and has to be {known:.6g}, since policy and reference"
                " are the same model before the first update; the reference log-probabilities are another model's, or rounded"
                " otherwise: remove the folder `references` of the store, or set method.cache_reference=false."
            )
