"""What every tuner is once it sits in a backbone: some parameters, a tuner, and a folder it can be kept in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from alignlab.errors import ControlError
from alignlab.models.strength import HasStrength, Strength, WeightedPass


class TrainableState(Protocol):
    """What a stage trains and keeps: some parameters, and a folder they can be kept in."""

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""

    def save(self, folder: Path) -> None:
        """Writes what is learned, as safetensors."""

    def load(self, folder: Path) -> None:
        """Reads back what `save` wrote."""


class Tuner(HasStrength, TrainableState, Protocol):
    """A tuner that is attached. Building one puts it in place, as the identity."""

    adds_parameters: bool
    """Whether what is learned stands beside the backbone's parameters, or is some of them."""

    @property
    def module(self) -> nn.Module:
        """The module that plain tools expect: a PeftModel, or the backbone itself."""

    def parts(self) -> Mapping[str, list[nn.Parameter]]:
        """Parts of it that a stage may train by themselves, by name; most tuners have none."""

    def set_base_model(self, folder: Path) -> None:
        """What is saved from now on names this checkpoint as its base."""

    def detached(self) -> AbstractContextManager[None]:
        """Out of the way while the backbone itself is trained or replaced; what it is on leaving is where the tuner starts."""


@contextmanager
def setting(name: str, value: object, things: Sequence[object]) -> Iterator[None]:
    """Inside, attribute `name` of each thing is `value`; afterwards it is what it was, errors included."""
    before = [getattr(thing, name) for thing in things]
    try:
        for thing in things:
            setattr(thing, name, value)
        yield
    finally:
        for thing, old in zip(things, before, strict=True):
            setattr(thing, name, old)


def one_pass(strength: Strength) -> tuple[WeightedPass, ...]:
    """The passes of a tuner whose edit is scaled: a single pass of weight 1."""
    return (WeightedPass(1.0, strength),)


def mixed_logits(strength: Strength) -> tuple[WeightedPass, ...]:
    """The passes of a tuner whose two ends are mixed at the logits: s z(1) + (1 - s) z(0), one pass at exactly 0 and 1.

    CLM (arXiv 2503.04346), section 4.3; DeRa (arXiv 2402.02992). Written so that both ends are exact.
    """
    if not isinstance(strength, Tensor) and strength in (0.0, 1.0):
        return (WeightedPass(1.0, strength),)
    return WeightedPass(strength, 1.0), WeightedPass(1 - strength, 0.0)


@contextmanager
def between(pairs: Iterable[tuple[nn.Parameter, Tensor]], strength: Strength) -> Iterator[None]:
    """Inside, each parameter is origin + strength * (parameter - origin), exact at 0 and 1.

    Raises ControlError for one strength per row: a weight is shared by all rows of a batch.
    """
    if isinstance(strength, Tensor):
        if strength.numel() != 1 and not bool((strength == strength[0]).all()):
            raise ControlError("this tuner takes one strength per batch, not one per row.")
        strength = float(strength.reshape(-1)[0])
    if strength == 1.0:
        yield
        return
    trained = [(parameter, parameter.data) for parameter, _ in pairs]
    try:
        for parameter, origin in pairs:
            start = origin.to(parameter.device, parameter.dtype)
            parameter.data = start if strength == 0.0 else start + strength * (parameter.data - start)
        yield
    finally:
        for parameter, data in trained:
            parameter.data = data


def origins(parameters: Iterable[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter beside a copy of what it is now; nothing is copied on the meta device."""
    with torch.no_grad():
        return [(p, p.detach() if p.is_meta else p.detach().clone()) for p in parameters]
