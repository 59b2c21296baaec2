"""What a stage moves: the tuner, the backbone without it, or both together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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

    lasting: bool
    """Whether the finished policy needs it."""

    def moving(self, policy: Policy) -> AbstractContextManager[Part]:
        """Inside, what is learned, saved and read back; the tuner is where it has to be meanwhile."""

    def announce(self, policy: Policy, result: Path) -> None:
        """Tells the policy what has changed, once `result` holds the part."""


@dataclass(frozen=True)
class TheTuner:
    """The tuner alone."""

    lasting = True

    def __str__(self) -> str:
        return "tuner"

    def moving(self, policy: Policy) -> AbstractContextManager[Part]:
        """The tuner, in its place."""
        return nullcontext(tuner_of(policy))

    def announce(self, policy: Policy, result: Path) -> None:
        """Nothing: the backbone is what it was."""


TUNER = TheTuner()


@dataclass(frozen=True)
class TheBackbone:
    """The backbone, as if no tuner were there; the tuner starts from what it has become."""

    lasting = True

    def __str__(self) -> str:
        return "backbone"

    @contextmanager
    def moving(self, policy: Policy) -> Iterator[Part]:
        """Every weight of the backbone, the tuner being aside."""
        with tuner_of(policy).aside():
            yield BackboneWeights(policy.model, tuner_of(policy))

    def announce(self, policy: Policy, result: Path) -> None:
        """The result becomes a checkpoint of its own, and the base of what is saved from now on."""
        rests_on(policy, result)


@dataclass(frozen=True)
class Both:
    """The backbone with the tuner in it. `tuner_rate`: the tuner's own learning rate; None leaves it as it is."""

    tuner_rate: float | None
    lasting = True

    def __str__(self) -> str:
        return "backbone" if self.tuner_rate is None else f"backbone and tuner (the tuner at {self.tuner_rate:g})"

    def moving(self, policy: Policy) -> AbstractContextManager[Part]:
        """Both, in folders of their own, the tuner in its place."""
        backbone = BackboneWeights(policy.model, tuner_of(policy))
        return nullcontext(BackboneAndTuner(backbone, tuner_of(policy), self.tuner_rate))

    def announce(self, policy: Policy, result: Path) -> None:
        """The backbone's folder becomes a checkpoint of its own, and the base of what is saved from now on."""
        rests_on(policy, result / LM)


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


def rests_on(policy: Policy, folder: Path) -> None:
    """The backbone's weights are those in `folder` now. Others get another fingerprint, by which references are cached."""
    policy.backbone.describe(folder)
    tuner_of(policy).rests_on(folder)
    policy.backbone = replace(policy.backbone, fingerprint=digest(folder))
