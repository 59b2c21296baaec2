"""The parts of a policy that a stage can train: by name, each with its own rate, decay and dtype.

`backbone`: every weight that is not the tuner's. `tuner`: what the tuner adds, or the weights that it tunes in place.
`tuner.NAME`: a part of the tuner that it names itself. `head`: what a classifier puts on its trunk, wherever it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from alignlab.errors import ConfigError
from alignlab.registry import unknown
from alignlab.training.second_model import SecondModel
from alignlab.tuners.lora import UpdateShape
from alignlab.tuners.tuner import Tuner

BACKBONE, TUNER, HEAD = "backbone", "tuner", "head"
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class PartSettings:
    """How a part is trained. `learning_rate` and `weight_decay`: None = the stage's; a rate of 0: the part rests, and is kept
    beside the others all the same. `dtype`: of its numbers while they are trained and in what is kept of them, None = as they
    are; behind the stage they are in the model's again."""

    learning_rate: float | None = None
    weight_decay: float | None = None
    dtype: str | None = None

    def check(self, name: str) -> None:
        """Raises ConfigError for numbers that cannot train, and for a dtype that does not exist."""
        for key in ("learning_rate", "weight_decay"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{key}={value} of part {name} must be a finite number of at least 0.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} of part {name} is not known; choose one of {', '.join(DTYPES)}.")


Trains = Mapping[str, PartSettings]
"""The parts that a stage trains, by name."""
THE_TUNER: Trains = {TUNER: PartSettings()}
THE_BACKBONE: Trains = {BACKBONE: PartSettings(dtype="float32")}
"""In half precision the small steps of a whole model round away."""


@dataclass(frozen=True)
class Trained:
    """A part with the parameters that are its own: those that no narrower part of the stage has."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    settings: PartSettings


def sentence(trains: Trains, through: UpdateShape | None = None, second: SecondModel | None = None) -> str:
    """What a stage trains, for the plan: `backbone and tuner (the tuner at 0.02)`."""
    moved = [name for name, settings in trains.items() if settings.learning_rate != 0]
    named = " and ".join("a second model" if second and name == BACKBONE else name for name in moved)
    rates = [f"the {name} at {trains[name].learning_rate:g}" for name in moved if trains[name].learning_rate is not None]
    return named + (f" ({', '.join(rates)})" if rates else "") + (", by a LoRA" if through else "")


def named_parts(model: PreTrainedModel, tuner: Tuner) -> dict[str, list[nn.Parameter]]:
    """Every part that this model with this tuner has, wider ones before the narrower ones that they hold."""
    own = tuner.parameters()
    added = ids_of(own) if tuner.adds_parameters else set()
    parts = {BACKBONE: [parameter for parameter in model.parameters() if id(parameter) not in added], TUNER: own}
    head = _head(model, added)
    if head:
        parts[HEAD] = head
    return parts | {f"{TUNER}.{name}": parameters for name, parameters in tuner.parts().items()}


def check_parts(trains: Trains, model: PreTrainedModel, tuner: Tuner) -> None:
    """Raises ConfigError for a part that is not there, for settings without a meaning, and where nothing is learned."""
    known = named_parts(model, tuner)
    for name, settings in trains.items():
        if name == HEAD and name not in known:
            kind = type(model).__name__
            raise ConfigError(f"a {kind} has no head to train beside its trunk; train {BACKBONE} or {TUNER}.")
        if name not in known:
            raise ConfigError(unknown("part to train", name, known))
        settings.check(name)
    if not any(settings.learning_rate != 0 for settings in trains.values()):
        raise ConfigError(f"every part of {', '.join(trains) or 'none'} rests, so the stage has nothing to learn.")
    if {BACKBONE, TUNER} <= trains.keys() and not tuner.adds_parameters:
        raise ConfigError("this tuner is some of the backbone's own weights; a stage trains either backbone or tuner.")


def own_parts(trains: Trains, known: Mapping[str, Sequence[nn.Parameter]]) -> list[Trained]:
    """The parts of a stage, each with what no narrower one of them has."""
    taken: set[int] = set()
    own: dict[str, tuple[nn.Parameter, ...]] = {}
    for name in reversed([name for name in known if name in trains]):
        own[name] = tuple(parameter for parameter in known[name] if id(parameter) not in taken)
        taken |= ids_of(own[name])
    return [Trained(name, own[name], settings) for name, settings in trains.items()]


def _head(model: PreTrainedModel, added: set[int]) -> list[nn.Parameter]:
    """What stands outside the trunk and is not the output embedding; where an adapter trains a copy, the copy."""
    trunk = getattr(model, model.base_model_prefix, None)
    if not isinstance(trunk, nn.Module):
        return []
    output = model.get_output_embeddings()
    inside = ids_of(trunk.parameters()) | (ids_of(output.parameters()) if isinstance(output, nn.Module) else set())
    outside = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    return [parameter for parameter in outside if id(parameter) in added] or outside


def ids_of(parameters: Iterable[nn.Parameter]) -> set[int]:
    """Which parameters these are."""
    return {id(parameter) for parameter in parameters}
