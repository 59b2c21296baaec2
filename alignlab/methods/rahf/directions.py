"""Where a direction of preference comes from: the same response read behind two prefixes, or by two models.

Shapes: L layers, K response tokens, D width. All passes run without the tuner, without gradients, and only up to the highest
layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.models.packing import member_of_tokens
from alignlab.models.policy import Policy
from alignlab.records import Batch
from alignlab.training.second_model import SecondModel

FILE = "states.safetensors"


class DirectionSource(Protocol):
    """Reads each group's response under both direction_source."""

    def __call__(self, policy: Policy, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The states of the model that the tuner sits on, and their shift towards what is preferred; both L,K,D, fp32, at the
        response tokens of member 0."""


class Prefixes:
    """v = A[better prefix] - A[worse prefix], the base being the plain prompt; members are plain, better, worse (SCIT, LoRRA).

    All three run in one pass.
    """

    def described(self) -> str:
        """There is nothing to set."""
        return "prefixes"

    @torch.no_grad()
    def __call__(self, policy: Policy, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See DirectionSource."""
        with policy.off():
            states_LND = policy.hidden_states(batch, layers).float()
        member_N = member_of_tokens(batch)
        plain, better, worse = (states_LND[:, member_N == number] for number in range(3))
        return plain, better - worse


class Models:
    """v = A[preferred model] - A[dispreferred model] on one input; the tuner sits on the preferred model (Dual)."""

    def __init__(self, second: SecondModel) -> None:
        self._second = second

    def described(self) -> SecondModel:
        """As the second model."""
        return self._second

    @torch.no_grad()
    def __call__(self, policy: Policy, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See DirectionSource."""
        with policy.off():
            preferred = policy.hidden_states(batch.member(0), layers).float()
            with self._second.inside():
                dispreferred = policy.hidden_states(batch.member(0), layers).float()
        return preferred, preferred - dispreferred


class Stored:
    """What stage `shift` has kept of every group, found by its row. It belongs to one run: the stage says where the file is."""

    def __init__(self) -> None:
        self._file: Any = None
        self._rows: set[str] = set()

    def described(self) -> str:
        """What it holds follows from the stage that keeps it."""
        return "stored"

    def open(self, path: Path) -> None:
        """Reads from this file from now on."""
        self._file = safe_open(path, framework="pt")
        self._rows = {name.partition(":")[2] for name in self._file.keys()}  # noqa: SIM118 - a file is no mapping

    def __call__(self, policy: Policy, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See DirectionSource. Raises ConfigError for a row that is not in the file."""
        if not set(batch.rows) <= self._rows:
            raise ConfigError("stage fit reads states that stage shift did not keep; run both with the same settings.")
        both = [torch.cat([self._file.get_tensor(f"{kind}:{row}") for row in batch.rows], dim=1) for kind in ("base", "shift")]
        base, shift = (states.to(policy.backbone.device) for states in both)
        return base, shift
