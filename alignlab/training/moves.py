"""What a stage moves: the tuner, the backbone without it, or both together."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import nn

from alignlab.models.policy import Policy
from alignlab.tuners.tuner import Part, Rated, Tuner
from alignlab.tuners.weights import BackboneWeights, digest

LM, CONTROL = "lm", "control"
"""Folders of a result that holds both."""


class Moves(Protocol):
    """How a stage gets hold of what it moves, and what it leaves behind."""

    def part(self, policy: Policy) -> Part:
        """What is learned, saved and read back."""

    def beside(self, policy: Policy) -> AbstractContextManager[None]:
        """Where the tuner is while the stage works."""

    def announce(self, policy: Policy, result: Path) -> None:
        """Tells the policy what has changed, once `result` holds the part."""


@dataclass(frozen=True)
class TheTuner:
    """The tuner alone."""

    def __str__(self) -> str:
        return "tuner"

    def part(self, policy: Policy) -> Part:
        """The tuner."""
        return tuner_of(policy)

    def beside(self, policy: Policy) -> AbstractContextManager[None]:
        """In its place."""
        return nullcontext()

    def announce(self, policy: Policy, result: Path) -> None:
        """Nothing: the backbone is what it was."""


TUNER = TheTuner()


@dataclass(frozen=True)
class TheBackbone:
    """The backbone, as if no tuner were there; the tuner starts from what it has become."""

    def __str__(self) -> str:
        return "backbone"

    def part(self, policy: Policy) -> Part:
        """Every weight of the backbone."""
        return BackboneWeights(policy.model, tuner_of(policy))

    def beside(self, policy: Policy) -> AbstractContextManager[None]:
        """Aside."""
        return tuner_of(policy).aside()

    def announce(self, policy: Policy, result: Path) -> None:
        """The result becomes a checkpoint of its own, and the base of what is saved from now on."""
        _rests_on(policy, result)


@dataclass(frozen=True)
class Both:
    """The backbone with the tuner in it. `tuner_rate`: the tuner's own learning rate; None leaves it as it is."""

    tuner_rate: float | None

    def __str__(self) -> str:
        return "backbone" if self.tuner_rate is None else f"backbone and tuner (the tuner at {self.tuner_rate:g})"

    def part(self, policy: Policy) -> Part:
        """Both, in folders of their own."""
        return BackboneAndTuner(BackboneWeights(policy.model, tuner_of(policy)), tuner_of(policy), self.tuner_rate)

    def beside(self, policy: Policy) -> AbstractContextManager[None]:
        """In its place."""
        return nullcontext()

    def announce(self, policy: Policy, result: Path) -> None:
        """The backbone's folder becomes a checkpoint of its own, and the base of what is saved from now on."""
        _rests_on(policy, result / LM)


class BackboneAndTuner:
    """Two parts as one. A tuner that rests (rate None) is kept all the same: it belongs to the weights it stood in."""

    def __init__(self, backbone: BackboneWeights, tuner: Tuner, tuner_rate: float | None) -> None:
        self._backbone, self._tuner, self._rate = backbone, tuner, tuner_rate

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""
        return self._backbone.parameters() + [parameter for rated in self.rated() for parameter in rated.parameters]

    def rated(self) -> list[Rated]:
        """The tuner's parameters, at their own rate."""
        learned = self._tuner.parameters()
        return [] if self._rate is None or not learned else [Rated(learned, self._rate)]

    def save(self, folder: Path) -> None:
        """Writes lm/ and control/, which names lm/ as its base."""
        self._backbone.save(folder / LM)
        self._tuner.rests_on(folder / LM)
        self._tuner.save(folder / CONTROL)

    def load(self, folder: Path) -> None:
        """Reads the backbone, then the tuner, which looks at whether it belongs to it."""
        self._backbone.load(folder / LM)
        self._tuner.load(folder / CONTROL)


def tuner_of(policy: Policy) -> Tuner:
    """A policy's knob is its tuner wherever there is something to learn."""
    tuner = policy.knob
    assert isinstance(getattr(tuner, "module", None), nn.Module)
    return tuner  # type: ignore[return-value]


def _rests_on(policy: Policy, folder: Path) -> None:
    """Other weights get another fingerprint, by which references are cached."""
    policy.backbone.describe(folder)
    tuner_of(policy).rests_on(folder)
    policy.backbone = replace(policy.backbone, fingerprint=digest(folder))
