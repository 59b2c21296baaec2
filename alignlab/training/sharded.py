"""A model whose weights are spread over the processes (torch's `fully_shard`, trainer=fsdp), made whole to be saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed import _composable_state
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback


class Unsharded(TrainerCallback):
    """Gives a module back its own parameters after it was sharded in place.

    Sharding replaces the first parameters by others. A tuner still refers to the first ones, which are empty while their
    values are sharded, and are back in place with all values when they are saved and when the training is over.
    """

    def __init__(self, module: nn.Module) -> None:
        self._before = [(each, type(each), _shallow(vars(each))) for each in module.modules()]
        self._first = [
            (each, name, parameter)
            for each in module.modules()
            for name, parameter in each._parameters.items()
            if parameter is not None
        ]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The module has been sharded: the first parameters are emptied."""
        self.spread()

    def spread(self) -> None:
        """Empties the first parameters that have been replaced by shards."""
        for owner, name, first in self._first:
            if isinstance(owner._parameters[name], DTensor):
                first.data = first.data.new_empty(0)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the first parameters are in place, with all their values. Every process has to come here."""
        shards = self._gather()
        try:
            yield
        finally:
            for owner, name, shard in shards:
                owner._parameters[name] = shard
            self.spread()

    def end(self) -> None:
        """The module is what it was before it was sharded, with the values that it has now. Every process has to come here."""
        self._gather()
        for each, kind, attributes in self._before:
            each.__class__ = kind
            vars(each).clear()
            vars(each).update(attributes)
            _composable_state._module_state_mapping.pop(each, None)  # else torch refuses to shard it for the next stage

    def _gather(self) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """Puts the first parameters in place of their shards, and returns those."""
        shards: list[tuple[nn.Module, str, nn.Parameter]] = []
        for owner, name, first in self._first:
            shard = owner._parameters[name]
            if isinstance(shard, DTensor):
                if first.numel() != shard.numel():  # a parameter with two places is gathered once
                    first.data = shard.full_tensor().detach()
                owner._parameters[name] = first
                shards.append((owner, name, shard))
        return shards


def _shallow(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a module, its tables of parameters, modules and hooks copied."""
    return {name: value.copy() if isinstance(value, dict) else value for name, value in attributes.items()}
