"""A stage that trains a second model beside the backbone, and stages that train either through a LoRA of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.models.policy import Policy
from alignlab.training.moves import rests_on, tuner_of
from alignlab.tuners.lora import LoraTuner
from alignlab.tuners.tuner import Part
from alignlab.tuners.update import Update, UpdateShape
from alignlab.tuners.weights import BackboneWeights


class SecondModel:
    """The backbone trained a second time, from where it stands, and put back. `inside`: it takes the backbone's place.

    It is the same module with other numbers, so its passes need no second network, only the numbers that differ. `through`:
    the LoRA that it is trained by; None = every weight. It belongs to one run: what it holds is found when its stage has run
    or was restored.
    """

    lasting = False

    def __init__(self, through: UpdateShape | None = None) -> None:
        self._through = through
        self._weights: list[tuple[nn.Parameter, Tensor]] = []

    def described(self) -> dict[str, Any]:
        """What decides its result; what it holds follows from that."""
        return {"through": self._through}

    def __str__(self) -> str:
        return "a second model" if self._through is None else "a second model, by a LoRA"

    @contextmanager
    def moving(self, policy: Policy) -> Iterator[Part]:
        """Every weight, or the LoRA, the tuner being aside. On leaving, the weights are what they were."""
        if self._through is not None:
            with _updating(policy, self._through) as update:
                yield update
                self._weights = update.updated()
            return
        with tuner_of(policy).aside():
            part = BackboneWeights(policy.model, tuner_of(policy))
            with _in_place([(parameter, parameter.data.clone()) for parameter in part.parameters()]):
                yield part
                self._weights = [(parameter, parameter.data) for parameter in part.parameters()]

    def announce(self, policy: Policy, result: Path) -> None:
        """Nothing: the backbone is what it was."""

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Every pass inside is the second model's, the tuner being off. Raises ConfigError where it was not trained."""
        if not self._weights:
            raise ConfigError(
                "the second model was not trained in this run; its stage must stand before the one that needs it."
            )
        with _in_place(self._weights):
            yield


class ThroughLora:
    """The backbone, moved by a LoRA of its own that becomes part of its weights. The result holds the LoRA, and beside it the
    whole backbone as a checkpoint (`whole/`), which is what later parts rest on."""

    lasting = True

    def __init__(self, shape: UpdateShape) -> None:
        self._shape = shape

    def described(self) -> dict[str, Any]:
        """The LoRA."""
        return {"through": self._shape}

    def __str__(self) -> str:
        return "backbone, by a LoRA"

    @contextmanager
    def moving(self, policy: Policy) -> Iterator[Part]:
        """The LoRA, the tuner being aside. On leaving, the LoRA is in the weights."""
        with _updating(policy, self._shape) as update:
            yield update
            updated = update.updated()
        with tuner_of(policy).aside():
            for parameter, value in updated:
                parameter.data = value

    def announce(self, policy: Policy, result: Path) -> None:
        """The whole backbone becomes a checkpoint of its own, and the base of what is saved from now on."""
        whole = result.parent / "whole"
        if not whole.is_dir():
            unfinished = whole.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            BackboneWeights(policy.model, tuner_of(policy)).save(unfinished)
            unfinished.rename(whole)
        rests_on(policy, whole)


@contextmanager
def _in_place(weights: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Inside, each parameter holds other numbers; afterwards it holds its own again, errors included."""
    starts = [parameter.data for parameter, _ in weights]
    try:
        for parameter, value in weights:
            parameter.data = value
        yield
    finally:
        for (parameter, _), start in zip(weights, starts, strict=True):
            parameter.data = start


@contextmanager
def _updating(policy: Policy, shape: UpdateShape) -> Iterator[Update]:
    """Inside, an update is all that is active."""
    tuner = tuner_of(policy)
    # A LoRA shares its layers with the update, which sets it aside itself.
    with nullcontext() if isinstance(tuner, LoraTuner) else tuner.aside():
        update = Update(policy.backbone.model, shape)
        try:
            yield update
        finally:
            update.remove()
