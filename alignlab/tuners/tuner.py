"""What every tuner has once it is attached to a backbone, and weights between two ends, which several tuners share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from alignlab.errors import ControlError
from alignlab.models.strength import HasStrength, Strength, WeightedPass


class TrainableState(Protocol):
    """What a stage trains and saves: some parameters, and how they are written to a folder and read back."""

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""

    def save(self, folder: Path) -> None:
        """Writes what is learned, as safetensors."""

    def load(self, folder: Path) -> None:
        """Reads back what `save` wrote."""


class Tuner(HasStrength, TrainableState, Protocol):
    """A tuner that is attached to a backbone; a new one changes no output unless `starts_as_base` is False."""

    adds_parameters: bool
    """True: the learned parameters are new ones beside the backbone's; False: they are some of the backbone's own."""

    @property
    def module(self) -> nn.Module:
        """The module that plain tools expect: a PeftModel, or the backbone itself."""

    def parts(self) -> Mapping[str, list[nn.Parameter]]:
        """Subsets of the parameters that a stage may train alone, by name; most tuners have none."""

    def made_of(self, parts: Collection[str]) -> None:
        """From now on it consists of these of its parts, those that a stage names; of all where none is named. A tuner whose
        parts belong together goes on as it is."""

    def set_base_model(self, folder: Path) -> None:
        """What is saved from now on names this checkpoint as its base."""

    def detached(self) -> AbstractContextManager[None]:
        """Inside, the backbone alone is active, to be trained or replaced; the tuner starts from what it is on leaving."""


def mixed_logits(strength: Strength) -> tuple[WeightedPass, ...]:
    """Logits s z(1) + (1 - s) z(0) as weighted passes: two, or one at exactly 0 and 1, so both ends are exact.

    CLM (arXiv 2503.04346), section 4.3; DeRa (arXiv 2402.02992), equation 12.
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
    """Pairs of each parameter and a copy of its present values; on the meta device, of the parameter and itself."""
    with torch.no_grad():
        return [(p, p.detach() if p.is_meta else p.detach().clone()) for p in parameters]
