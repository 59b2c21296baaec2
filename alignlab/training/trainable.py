"""What a stage trains, in its place: the parts of a policy inside, what is kept of them, and what follows from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models.policy import Policy
from alignlab.training.parts import BACKBONE, HEAD, TUNER, Trained, Trains, check_parts, ids_of, named_parts, own_parts
from alignlab.training.second_model import SecondModel
from alignlab.tuners.lora import LoraTuner, Update, UpdateShape
from alignlab.tuners.tuner import TrainableState, Tuner
from alignlab.tuners.weights import BackboneWeights, StoredWeights, digest

LM, CONTROL, WHOLE = "lm", "control", "whole"
"""Folders of a result: of a backbone and a tuner that were trained together, and beside it of a backbone moved by a LoRA."""
HEAD_FILE = "head.safetensors"


@dataclass(frozen=True)
class TrainableParts:
    """What a stage trains. `learned`: its parts, those that rest left out. `kept`: what is saved of them, by its folder in the
    result; a backbone stands before the tuner that belongs to it."""

    learned: tuple[Trained, ...]
    kept: Mapping[str, TrainableState]
    tuner: Tuner | None = field(default=None)

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
    policy: Policy, trains: Trains, through: UpdateShape | None = None, second: SecondModel | None = None
) -> Iterator[TrainableParts]:
    """Inside, the parts are what is learned, saved and read back.

    The tuner is detached where nothing of it is named, and starts from what the backbone has become. `through`: the backbone is
    moved by this LoRA, which is in its weights on leaving. `second`: gets the backbone as it is on leaving, which is put back
    to what it was. Raises ConfigError as `check_parts` does.
    """
    tuner = tuner_of(policy)
    check_parts(trains, policy.backbone.model, tuner)
    parts = own_parts(trains, named_parts(policy.backbone.model, tuner))
    if through is not None:
        with _updating(policy, through) as update:
            yield TrainableParts((Trained(BACKBONE, tuple(update.parameters()), trains[BACKBONE]),), {"": update})
            updated = update.updated()
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
    policy: Policy, result: Path, trains: Trains, through: UpdateShape | None = None, second: SecondModel | None = None
) -> None:
    """Once `result` holds what a stage has trained: a backbone that stays in the policy becomes a checkpoint of its own, and
    the base of what is saved from now on. Of one moved by a LoRA, the whole is written beside the result."""
    if BACKBONE not in trains or second is not None:
        return
    if through is not None:
        _set_base_model(policy, _whole(policy, result.parent / WHOLE))
    else:
        _set_base_model(policy, result / LM if (result / LM).is_dir() else result)


def tuner_of(policy: Policy) -> Tuner:
    """A policy's tuner is its tuner wherever there is something to learn."""
    tuner = policy.tuner
    assert isinstance(getattr(tuner, "module", None), nn.Module)
    return tuner  # type: ignore[return-value]


def _kept(trains: Trains, parts: Sequence[Trained], policy: Policy, tuner: Tuner) -> dict[str, TrainableState]:
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
def _in_dtypes(parts: Sequence[Trained], model: nn.Module) -> Iterator[None]:
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
    """Inside, an update is all that is active."""
    tuner = tuner_of(policy)
    # A LoRA shares its layers with the update, which sets it aside itself.
    inside: AbstractContextManager[None] = nullcontext() if isinstance(tuner, LoraTuner) else tuner.detached()
    with inside:
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


def _set_base_model(policy: Policy, folder: Path) -> None:
    """The backbone's weights are those in `folder` now. Others get another fingerprint, by which references are cached."""
    policy.backbone.describe(folder)
    tuner_of(policy).set_base_model(folder)
    policy.backbone = policy.backbone.moved(digest(folder))
