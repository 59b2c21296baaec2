"""What a stage can train: the parts of a policy by name, each with its own rate, decay and dtype; and what is saved of them.

`backbone`: every weight that is not the tuner's. `tuner`: what the tuner adds, or the weights that it tunes in place.
`tuner.NAME`: a part of the tuner that it names itself. `head`: what a classifier puts on its trunk, wherever it is stored.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ConfigError
from alignlab.models.anatomy import block_list
from alignlab.models.policy import Policy
from alignlab.registry import unknown
from alignlab.training.references import SecondModel
from alignlab.tuners.lora import LoraTuner, Update, UpdateShape
from alignlab.tuners.tuner import TrainableState, Tuner
from alignlab.tuners.weights import BackboneWeights, StoredWeights, digest

BACKBONE, TUNER, HEAD = "backbone", "tuner", "head"
DTYPES = ("float32", "bfloat16")
LM, CONTROL, WHOLE = "lm", "control", "whole"
"""Folders of a result: of a backbone and a tuner trained together; and beside the result of a LoRA update, all weights."""
HEAD_FILE = "head.safetensors"


@dataclass(frozen=True)
class PartSettings:
    """How a part is trained. `learning_rate` and `weight_decay`: None = the stage's; a rate of 0: the part is frozen, and saved
    with the others all the same. `dtype`: of its weights while they are trained and in what is saved, None = the model's."""

    learning_rate: float | None = None
    weight_decay: float | None = None
    dtype: str | None = None

    def check(self, name: str) -> None:
        """Raises ConfigError for numbers that cannot train, and for an unknown dtype."""
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
class TrainedPart:
    """A part with the parameters that are its own: those that no narrower part of the stage has."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    settings: PartSettings


def sentence(trains: Trains, update: UpdateShape | None = None, second: SecondModel | None = None) -> str:
    """What a stage trains, for the plan: `backbone and tuner (the tuner at 0.02)`."""
    learned = [name for name, settings in trains.items() if settings.learning_rate != 0]
    named = " and ".join("a second model" if second and name == BACKBONE else name for name in learned)
    rates = [f"the {name} at {trains[name].learning_rate:g}" for name in learned if trains[name].learning_rate is not None]
    return named + (f" ({', '.join(rates)})" if rates else "") + (", by a LoRA" if update else "")


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
        raise ConfigError(f"every part of {', '.join(trains) or 'none'} is frozen, so the stage has nothing to learn.")
    if {BACKBONE, TUNER} <= trains.keys() and not tuner.adds_parameters:
        raise ConfigError("this tuner is some of the backbone's own weights; a stage trains either backbone or tuner.")


def check_reach(trains: Trains, model: PreTrainedModel, tuner: Tuner, highest: int) -> None:
    """Raises ConfigError where all that is trained stands above the output of block `highest`, which is all that is read."""
    parts, (_, blocks) = named_parts(model, tuner), block_list(model)
    above = ids_of(parameter for part in (*blocks[highest:], model.get_output_embeddings()) for parameter in part.parameters())
    if all(ids_of(parts[name]) <= above for name in trains):
        raise ConfigError(
            f"all that is trained stands above block {highest}, whose output is the highest that this stage compares, so"
            " nothing would be learned; choose lower layers for the tuner, or higher ones for the method."
        )


def own_parts(trains: Trains, known: Mapping[str, Sequence[nn.Parameter]]) -> list[TrainedPart]:
    """The parts of a stage, each without the parameters that a narrower one of them has."""
    taken: set[int] = set()
    own: dict[str, tuple[nn.Parameter, ...]] = {}
    for name in reversed([name for name in known if name in trains]):
        own[name] = tuple(parameter for parameter in known[name] if id(parameter) not in taken)
        taken |= ids_of(own[name])
    return [TrainedPart(name, own[name], settings) for name, settings in trains.items()]


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


@dataclass(frozen=True)
class TrainableParts:
    """What a stage trains. `learned`: its parts, without the frozen ones. `kept`: what is saved of them, by its folder in the
    result; a backbone stands before the tuner that belongs to it."""

    learned: tuple[TrainedPart, ...]
    kept: Mapping[str, TrainableState]
    tuner: Tuner | None = None

    def parameters(self) -> list[nn.Parameter]:
        """All that is learned."""
        return [parameter for part in self.learned for parameter in part.parameters]

    def save(self, folder: Path) -> None:
        """Writes every state; a tuner that was trained together with a backbone names it as its base."""
        for place, state in self.kept.items():
            if place == CONTROL and self.tuner is not None:
                self.tuner.set_base_model(folder / LM)
            state.save(folder / place)

    def load(self, folder: Path) -> None:
        """Reads them back, the backbone first: a tuner looks at whether it belongs to it."""
        for place, state in self.kept.items():
            state.load(folder / place)


@contextmanager
def training(
    policy: Policy, trains: Trains, update: UpdateShape | None = None, second: SecondModel | None = None
) -> Iterator[TrainableParts]:
    """Inside, the parts are what is learned, saved and read back.

    The tuner is detached where nothing of it is named, and starts from what the backbone has become. `update`: the backbone is
    trained by a LoRA of this shape, which is added to its weights on leaving. `second`: gets the backbone's weights on leaving,
    and the backbone gets back those that it had. Raises ConfigError as `check_parts` does.
    """
    tuner = tuner_of(policy)
    check_parts(trains, policy.backbone.model, tuner)
    if TUNER in trains or any(name.startswith(f"{TUNER}.") for name in trains):
        named = () if TUNER in trains else [name.partition(".")[2] for name in trains if name.startswith(f"{TUNER}.")]
        tuner.made_of(named)
    parts = own_parts(trains, named_parts(policy.backbone.model, tuner))
    if update is not None:
        with _updating(policy, update) as lora:
            yield TrainableParts((TrainedPart(BACKBONE, tuple(lora.parameters()), trains[BACKBONE]),), {"": lora})
            updated = lora.updated()
        if second is not None:
            second.hold(updated)
            return
        with tuner.detached():
            for parameter, value in updated:
                parameter.data = value
        return
    kept = _kept(trains, parts, policy, tuner)
    attached = tuner in kept.values()
    backbone = kept.get(LM, kept.get("")) if BACKBONE in trains else None
    put_back = second.instead_of(backbone.parameters()) if second and backbone else nullcontext()
    with nullcontext() if attached else tuner.detached(), put_back, _in_dtypes(parts, policy.backbone.model):
        learned = tuple(part for part in parts if part.parameters and part.settings.learning_rate != 0)
        yield TrainableParts(learned, kept, tuner)


def load_result(
    policy: Policy,
    result: Path,
    trains: Trains,
    update: UpdateShape | None = None,
    second: SecondModel | None = None,
    *,
    described: bool = False,
) -> None:
    """Once `result` holds what a stage has trained: a backbone that stays in the policy becomes a checkpoint of its own, and
    the base of what is saved from now on. Of one trained by a LoRA, all weights are written beside the result. `described`: it
    has its config and tokenizer already, and nothing in a finished result is written again."""
    if BACKBONE not in trains or second is not None:
        return
    if update is not None:
        _set_base_model(policy, _whole(policy, result.parent / WHOLE), described)
    else:
        _set_base_model(policy, result / LM if (result / LM).is_dir() else result, described)


def tuner_of(policy: Policy) -> Tuner:
    """The tuner of a policy that is trained."""
    tuner = policy.tuner
    assert isinstance(getattr(tuner, "module", None), nn.Module)
    return tuner  # type: ignore[return-value]


def _kept(trains: Trains, parts: Sequence[TrainedPart], policy: Policy, tuner: Tuner) -> dict[str, TrainableState]:
    """What is saved: the whole backbone, the whole tuner, or each in a folder of its own; and a head that neither has."""
    held = ids_of(tuner.parameters())
    of_the_tuner = any(part.name.split(".")[0] == TUNER or not held.isdisjoint(ids_of(part.parameters)) for part in parts)
    if BACKBONE in trains:
        backbone = BackboneWeights(policy.model, tuner)
        return {LM: backbone, CONTROL: tuner} if of_the_tuner and tuner.adds_parameters else {"": backbone}
    kept: dict[str, TrainableState] = {"": tuner} if of_the_tuner else {}
    loose = {id(parameter) for part in parts if part.name == HEAD for parameter in part.parameters} - held
    if loose:
        named = {name: parameter for name, parameter in policy.model.named_parameters() if id(parameter) in loose}
        kept[HEAD] = StoredWeights(named, HEAD_FILE)
    return kept


@contextmanager
def _in_dtypes(parts: Sequence[TrainedPart], model: nn.Module) -> Iterator[None]:
    """Inside, each part has the dtype of its settings; a head takes what the trunk gives it in that dtype."""
    cast = [(part, getattr(torch, part.settings.dtype)) for part in parts if part.settings.dtype]
    wanted = [(parameter, dtype) for part, dtype in cast for parameter in part.parameters]
    before = [parameter.dtype for parameter, _ in wanted]
    heads = [module for part, _ in cast if part.name == HEAD for module in _modules(model, part.parameters)]
    hooks = [module.register_forward_pre_hook(_cast_input) for module in heads]
    try:
        for parameter, dtype in wanted:
            parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for (parameter, _), own in zip(wanted, before, strict=True):
            parameter.data = parameter.data.to(own)


def _modules(model: nn.Module, parameters: Sequence[nn.Parameter]) -> list[nn.Module]:
    """The modules that have these parameters as their own."""
    held = ids_of(parameters)
    return [module for module in model.modules() if held & ids_of(module.parameters(recurse=False))]


def _cast_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(each.to(dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs)


@contextmanager
def _updating(policy: Policy, shape: UpdateShape) -> Iterator[Update]:
    """Inside, an update is the only active adapter."""
    tuner = tuner_of(policy)
    # A LoRA shares its layers with the update, which detaches it itself.
    detached: AbstractContextManager[None] = nullcontext() if isinstance(tuner, LoraTuner) else tuner.detached()
    with detached:
        update = Update(policy.backbone.model, shape)
        try:
            yield update
        finally:
            update.remove()


def _whole(policy: Policy, folder: Path) -> Path:
    """The folder with every weight of the backbone; written once, and whole or not at all."""
    if not folder.is_dir():
        unfinished = folder.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        BackboneWeights(policy.model, tuner_of(policy)).save(unfinished)
        unfinished.rename(folder)
    return folder


def _set_base_model(policy: Policy, folder: Path, described: bool) -> None:
    """The backbone's weights are those in `folder` now. Others get another fingerprint, by which references are cached."""
    if not described:
        policy.backbone.describe(folder)
    tuner_of(policy).set_base_model(folder)
    policy.backbone = policy.backbone.moved(digest(folder))
