"""What a strength means to a backbone that carries a tuner: the seam between a policy and the thing it is steered by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from alignlab.errors import ControlError

if TYPE_CHECKING:
    from alignlab.models.controls import Controls

Strength: TypeAlias = "float | Tensor"
"""One number for every row of a batch, or a tensor with one number per row."""


@dataclass(frozen=True)
class Prefix:
    """Ids that are put into a text, behind its first `behind` tokens (BOS)."""

    ids: tuple[int, ...] = ()
    behind: int = 0


@dataclass(frozen=True)
class WeightedPass:
    """One weighted forward pass: its logits, times `weight`, with the tuner at `setting` and a prefix in every text."""

    weight: Strength
    setting: Strength
    prefix: Prefix = Prefix()


class HasStrength(Protocol):
    """How a tuner turns a strength into forward passes, and how it is set and switched off."""

    per_row: bool
    """Whether one pass may hold rows of different settings."""

    controls: Controls | None
    """The classes between which it chooses; None where it has a strength only."""

    starts_as_base: bool
    """Whether a new one leaves every log-probability as it is without the tuner."""

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """The passes whose weighted logits make this strength; raises ControlError for one it cannot honour."""

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """Sets the tuner for the passes inside; at 1.0 nothing is touched."""

    def off(self) -> AbstractContextManager[None]:
        """Makes the model the backbone as it is without the tuner, bit for bit, for the passes inside."""


class Untuned:
    """The tuner of a model that carries nothing."""

    per_row = True
    controls: Controls | None = None
    starts_as_base = True

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """One pass, whatever the strength."""
        del strength
        return (WeightedPass(1.0, 1.0),)

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """Nothing to set."""
        del setting
        return nullcontext()

    def off(self) -> AbstractContextManager[None]:
        """Nothing to switch off."""
        return nullcontext()


def as_strength(values: Sequence[float], device: torch.device) -> Strength:
    """One number where all are the same, else a tensor of them."""
    return torch.tensor(values, device=device) if len(set(values)) > 1 else values[0]


def checked_strengths(strength: float | Iterable[float], count: int | None = None) -> list[float]:
    """One strength per prompt, `count` of them where it is known.

    Raises ControlError for a list of another length and for anything but finite numbers.
    """
    try:
        if isinstance(strength, (str, set, frozenset)):
            raise TypeError
        # A tensor without dimensions says that it can be iterated, and cannot.
        many = isinstance(strength, Iterable) and getattr(strength, "ndim", 1) > 0
        given = list(strength) if many else [float(strength)] * (1 if count is None else count)  # type: ignore[arg-type]
        values = [float(value) for value in given]
    except (TypeError, ValueError) as error:
        raise ControlError(f"strength {strength!r} is not a number or a list of numbers.") from error
    if count is not None and len(values) != count:
        raise ControlError(f"{len(values)} strengths were given for {count} prompts; give one number, or one per prompt.")
    if not all(math.isfinite(value) for value in values):
        raise ControlError(f"strength {values} holds a value that is not finite; give real numbers.")
    return values
