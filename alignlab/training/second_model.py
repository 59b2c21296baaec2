"""A second model beside the backbone: the same module with other numbers, so its passes need no second network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from alignlab.errors import ConfigError


class SecondModel:
    """The numbers that differ from the backbone's. It belongs to one run: what it holds is found when the stage that trains it
    has run or was restored. `inside`: it takes the backbone's place."""

    def __init__(self) -> None:
        self._weights: list[tuple[nn.Parameter, Tensor]] = []

    def described(self) -> str:
        """What it holds follows from the stage that trains it."""
        return "second model"

    def hold(self, weights: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        """From now on it is the backbone with these numbers in some of its parameters."""
        self._weights = list(weights)

    @contextmanager
    def instead_of(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Inside, the parameters may become another model's. On leaving this holds what they have become, unless an error
        ends it, and they are what they were."""
        with _in_place([(parameter, parameter.data.clone()) for parameter in parameters]):
            yield
            self.hold([(parameter, parameter.data) for parameter in parameters])

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Every pass inside is the second model's, the tuner being off. Raises ConfigError where it was not trained."""
        if not self._weights:
            raise ConfigError(
                "the second model was not trained in this run; its stage must stand before the one that needs it."
            )
        with _in_place(self._weights):
            yield


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
