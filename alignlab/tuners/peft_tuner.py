"""What the tuners that PEFT attaches share: registration with PEFT, float32 parameters, attaching, setting, saving, loading."""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, load_peft_weights, register_peft_method
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ControlError, ModelError
from alignlab.models.anatomy import trunk_of
from alignlab.models.config import EMBEDDED
from alignlab.models.kinds import task_type_of
from alignlab.models.strength import NOTHING, ONE_PASS, Controls, Inserted, Strength, WeightedPass
from alignlab.tuners.tuner import between

if TYPE_CHECKING:
    from typing_extensions import Self

HEADED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""Task types for which PEFT trains a new, randomly initialised head."""

SAMPLED = 16
"""Numbers looked at from each end of every tensor: training moves nearly all, and a look stays cheap at any size."""

LOOKED_AT = (torch.float32, torch.bfloat16, torch.float16)

REGISTERED: dict[str, type[PeftTuner]] = {}
"""PEFT type -> tuner, of those that `register` added."""


def peft_type(name: str) -> PeftType:
    """The member `name` of `PeftType`, added on the first call.

    PEFT has no public way to add one; a plain string in its tables fails in transformers' loader for adapter folders. This
    writes the private tables of `enum.Enum`; the tests try attach, save, load, merge and `load_adapter`.

    Raises ModelError where this PEFT has a method of that name itself.
    """
    present = PeftType.__members__.get(name)
    if present is not None:
        if getattr(present, "added_by", None) != "alignlab":
            raise ModelError(f"this peft has a method {name} of its own that alignlab's would hide; try peft>=0.21,<0.23.")
        return present
    member = str.__new__(PeftType, name)
    vars(member).update(_name_=name, _value_=name, __objclass__=PeftType, _sort_order_=len(PeftType), added_by="alignlab")
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)  # EnumType itself refuses to set a member's name on the class
    return member


def register(name: str, config: type[PeftConfig], model: type[BaseTuner], tuner: type[PeftTuner]) -> None:
    """Makes a method known to PEFT under a lower-case name, and its tuner to `at_strength`; calling it twice changes nothing.

    Raises ModelError where PEFT, or another package, already has a method of that name.
    """
    known = PEFT_TYPE_TO_TUNER_MAPPING.get(peft_type(name.upper()))
    if known is None:
        register_peft_method(name=name, config_cls=config, model_cls=model)
    elif (known.__module__, known.__qualname__) != (model.__module__, model.__qualname__):
        theirs = f"{known.__module__}.{known.__qualname__}"
        raise ModelError(f"peft already runs {theirs} under the name {name!r}; import only one of the two.")
    REGISTERED[name.upper()] = tuner


class LayerModel(BaseTuner):
    """A PEFT method that puts a layer of its own, a `tuner_layer_cls`, in the place of each module that its config names."""

    def around(self, target: nn.Module, parent: nn.Module, name: str, adapter_name: str, config: PeftConfig) -> nn.Module:
        """The new layer in the place of `target`, which `parent` has. `name`: of the target in the model."""
        del parent, name
        made: nn.Module = self.tuner_layer_cls(target, adapter_name, config)  # type: ignore[call-arg]
        return made

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.around(target, parent, current_key, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def per_row(strength_B: Tensor, output: Tensor) -> Tensor:
    """One strength per row as float32 of shape (B, 1, ..., 1), for an output of shape (B, ..., D), or of shape (B * T, D), in
    which the tokens of all rows stand after one another, as OPT's feed-forward sees them. Raises ControlError where the
    strengths do not fit the rows."""
    if output.dim() == 2 and output.shape[0] % len(strength_B) == 0:
        strength_B = strength_B.repeat_interleave(output.shape[0] // len(strength_B))
    if strength_B.shape[0] != output.shape[0]:
        given, rows = strength_B.shape[0], output.shape[0]
        raise ControlError(f"{given} strengths were given for a batch of {rows} rows; give one number, or one per row.")
    return strength_B.to(output.device, torch.float32).view(-1, *[1] * (output.dim() - 1))


class AroundLayer(nn.Module):
    """A module in the place of `base_layer`; what it does not have itself is that layer's."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class AddingLayer(BaseTunerLayer):
    """A layer to whose output the active adapters, in their order, add what they make of it, times a strength."""

    strength: Strength
    active_adapters: list[str]

    def with_added(self, output: Tensor, adapters: nn.ModuleDict) -> Tensor:
        """The output (B, ..., D) with what is added in float32, cast back to its own dtype; itself at 0 or when off."""
        strength = self.strength
        if self.disable_adapters or (not isinstance(strength, Tensor) and strength == 0):
            return output
        factor = per_row(strength, output) if isinstance(strength, Tensor) else strength
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        for name in self.active_adapters:
            if name in adapters:
                wide = wide + factor * adapters[name](wide)
        changed = wide.to(output.dtype)
        return torch.where(factor == 0, output, changed) if isinstance(factor, Tensor) else changed


class Float32(nn.Module):
    """Parameters that stay in float32 over any backbone: small steps round away in half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows `.to(device)`, but not `.to(dtype)`: PEFT's attaching and a later cast of the model both come here."""
        super()._apply(lambda tensor: at_least_float32(tensor, fn(tensor)), recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Casts a file's half-precision tensors: loading with `assign=True` would take them as they are."""
        for name in state_dict:
            if name.startswith(prefix):
                state_dict[name] = at_least_float32(state_dict[name], state_dict[name])
        super()._load_from_state_dict(state_dict, prefix, *rest)


def at_least_float32(before: Tensor, after: Tensor) -> Tensor:
    """`after`, or, where it is of a half-precision type, `before` on its device in float32."""
    if not after.is_floating_point() or after.dtype in (torch.float32, torch.float64):
        return after
    return before.to(after.device, torch.float32)


def own_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """A model's own weights under the names that they have without adapters, which are left out."""
    adapters = {
        id(parameter)
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for name in layer.adapter_layer_names
        for parameter in getattr(layer, name).parameters()
    }
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", ""): parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in adapters and ".modules_to_save." not in name
    }


def weights_hash(model: nn.Module) -> str:
    """A short hash of the names, shapes and some numbers of a model's own weights, read as bfloat16."""
    made = hashlib.sha256()
    for name, parameter in own_weights(model).items():
        made.update(f"{name} {tuple(parameter.shape)}".encode())
        made.update(_sample(parameter.detach().flatten()))
    return made.hexdigest()[:16]


def refuse_other(model: nn.Module, expected: str | None, tuned: str = "control") -> None:
    """Raises ModelError where what is `tuned` was tuned with other weights; not looked at are quantised ones and those
    elsewhere."""
    unknown = any(held.is_meta or held.dtype not in LOOKED_AT for held in model.parameters())
    if expected is not None and not unknown and weights_hash(model) != expected:
        raise ModelError(
            f"this {tuned} was tuned together with other weights than the model has; load it on the model that it belongs to,"
            " which may be saved beside it (lm/), in float32 or bfloat16."
        )


def _sample(flat: Tensor) -> bytes:
    ends = torch.cat([flat[:SAMPLED], flat[-SAMPLED:]])
    return ends.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes()


def stores_transposed(model: nn.Module) -> bool:
    """Whether the model's linear maps are GPT-2's Conv1D, which store their weight as in x out; PEFT needs to know."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def public_name(model: nn.Module) -> str | None:
    """A backbone's name for others: its name on the hub, alignlab/NAME of an embedded model, else its folder's own name."""
    origin = str(getattr(model, "name_or_path", "") or "")
    folder = Path(origin)
    if not origin or not (folder.is_absolute() or folder.is_dir()):
        return origin or None
    return f"alignlab/{folder.name}" if folder.parent == EMBEDDED else folder.name


@contextmanager
def temporarily(name: str, value: object, things: Sequence[object]) -> Iterator[None]:
    """Inside, attribute `name` of each thing is `value`; afterwards it is what it was, errors included."""
    before = [getattr(thing, name) for thing in things]
    try:
        for thing in things:
            setattr(thing, name, value)
        yield
    finally:
        for thing, old in zip(things, before, strict=True):
            setattr(thing, name, old)


class ModulesToSave:
    """What PEFT trains beside an edit: whole modules (`modules_to_save`) and rows of an embedding (`trainable_token_indices`).

    Both keep their original weights and are shared by all rows of a batch, so they follow the strength: 0 original, 1 trained.
    A classifier's head has no original, only a random start, so it stays as trained at every strength. `names`: the modules,
    without heads. `any`: whether there is anything, heads included.
    """

    def __init__(self, model: PeftModel) -> None:
        trunk = f"base_model.model.{getattr(model.get_base_model(), 'base_model_prefix', '')}."
        headed = str(getattr(model.active_peft_config, "task_type", None)).rpartition(".")[2] in HEADED
        kinds = (AuxiliaryTrainingWrapper, TrainableTokensLayer)
        every = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
        followed = {name: module for name, module in every.items() if not headed or name.startswith(trunk)}
        self._every, self._followed = list(every.values()), list(followed.values())
        wrappers = [name for name, module in followed.items() if isinstance(module, AuxiliaryTrainingWrapper)]
        self.names = [name.removeprefix("base_model.model.") for name in wrappers]
        self.any = bool(every)

    def off(self) -> AbstractContextManager[None]:
        """Everything as it was before training, heads included."""
        return temporarily("_disable_adapters", True, self._every)

    def at(self, strength: float) -> AbstractContextManager[None]:
        """All but heads between original (0) and trained (1), or beyond; at 0 the original module itself, in its own dtype."""
        if strength == 0.0:
            return temporarily("_disable_adapters", True, self._followed)
        pairs = {id(pair[0]): pair for module in self._followed for pair in _with_originals(module)}  # each tensor once
        return between(list(pairs.values()), strength)


def _with_originals(module: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
    if isinstance(module, ModulesToSaveWrapper):
        for name in module.active_adapters:
            if name in module.modules_to_save:
                original = dict(module.original_module.named_parameters())
                for key, parameter in module.modules_to_save[name].named_parameters():
                    yield parameter, original[key].detach()
    elif isinstance(module, TrainableTokensLayer):
        for name in module.active_adapters:
            if name in module.trainable_tokens_delta:
                yield module.trainable_tokens_delta[name], module.trainable_tokens_original[name]


class PeftTuner(ABC):
    """A PEFT adapter; each tuner adds its `edited`. `beside`: what PEFT trains beside the edit, which follows the strength.

    `one_strength`: why all rows of a pass share a strength, as the end of a sentence; empty where they may differ.
    `adds_blocks`: whether the model has more blocks with it.
    """

    per_row = True
    adds_blocks = False
    controls: Controls | None = None
    inserted: Inserted = NOTHING
    adds_parameters = True
    starts_as_base = True
    default_passes = ONE_PASS

    def __init__(self, model: PreTrainedModel, config: PeftConfig) -> None:
        config.task_type = config.task_type or task_type_of(model)
        config.base_model_name_or_path = None  # a control may name the folder of another machine, of which PEFT would warn
        try:
            with warnings.catch_warnings():
                # PEFT reads a property that transformers 5 has renamed.
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
                # Of fused experts PEFT names maps that are not there.
                warnings.filterwarnings("ignore", message=".*(rank|alpha)_pattern keys did not match", category=RuntimeWarning)
                self.module: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as error:
            raise ModelError(f"peft cannot attach {config.peft_type}: {error}") from error
        config.base_model_name_or_path = public_name(model)
        self._find()

    @classmethod
    def around(cls, model: PeftModel) -> Self:
        """The tuner of a model that PEFT has attached already."""
        tuner = cls.__new__(cls)
        tuner.module = model
        tuner._find()
        return tuner

    def _find(self) -> None:
        modules = list(self.module.modules())
        self.layers: list[Any] = [
            m for m in modules if isinstance(m, BaseTunerLayer) and not isinstance(m, TrainableTokensLayer)
        ]
        self._learned = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self._base: Path | None = None
        self.beside = ModulesToSave(self.module)
        inside = set(trunk_of(self.module.get_base_model()).modules())
        self.edits_head = self.beside.any or any(layer not in inside for layer in self.layers)
        self.one_strength = self._shared_by_rows()
        self.per_row = type(self).per_row and not self.one_strength

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""
        return list(self._learned)

    def parts(self) -> Mapping[str, list[nn.Parameter]]:
        """None; a tuner of several parts says so."""
        return {}

    def made_of(self, parts: Collection[str]) -> None:
        """All parts belong together."""
        del parts

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """One pass of weight 1 at this strength."""
        return (WeightedPass(1.0, strength),)

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """The edit scaled, and what was trained beside it.

        Raises ControlError for rows of different strengths where they share what is scaled.
        """
        if isinstance(setting, float) and setting == 1.0:
            return nullcontext()
        if not self.one_strength:
            return self.edited(setting)
        strength = _one(setting, self.one_strength)
        return nullcontext() if strength == 1.0 else both(self.edited(strength), self.beside.at(strength))

    @abstractmethod
    def edited(self, setting: Strength) -> AbstractContextManager[None]:
        """The edit at a setting, without what PEFT trains beside it. `at` above never calls it for 1.0."""

    def _shared_by_rows(self) -> str:
        if self.beside.names:
            return f"{', '.join(self.beside.names)} was trained beside the edit and is shared by all rows"
        find = getattr(self.module.get_base_model(), "get_output_embeddings", None)
        head = find() if find is not None else None
        if head is not None and any(layer is head for layer in self.layers):
            return "the adapter sits on the head, which sees single tokens and no rows"
        return ""

    def off(self) -> AbstractContextManager[None]:
        """Without the adapter. Layers are switched one by one, since PEFT's own context also turns gradients off and on."""
        off = temporarily("_disable_adapters", True, self.layers)
        return both(off, self.beside.off()) if self.beside.any else off

    def set_base_model(self, folder: Path) -> None:
        """`save` names this checkpoint as the base, by its path relative to the adapter: both may move together."""
        self._base = folder.resolve()

    def detached(self) -> AbstractContextManager[None]:
        """Without the adapter; one whose start depends on the backbone overrides it."""
        return self.off()

    def save(self, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors, loadable with PeftModel.from_pretrained.

        Neither they nor PEFT's model card name a folder of this machine.
        """
        model = self.module.get_base_model()
        name = Path(os.path.relpath(self._base, folder.resolve())).as_posix() if self._base else public_name(model)
        configs = list(self.module.peft_config.values())
        with (
            temporarily("base_model_name_or_path", name, configs),
            temporarily("name_or_path", name or "", [model]),  # PEFT's card reads it from the model
            temporarily("_name_or_path", name or "", [model.config]),
        ):
            # "auto" would ask the hub for the base's config and may write whole embeddings beside the adapter.
            self.module.save_pretrained(str(folder), save_embedding_layers=False)

    def load(self, folder: Path) -> None:
        """Reads the adapter's tensors back. Raises ModelError where the file has other names."""
        tensors = load_peft_weights(str(folder), device="cpu")
        expected = get_peft_model_state_dict(self.module, save_embedding_layers=False)
        differing = sorted(tensors.keys() ^ expected.keys())
        if differing:
            raise ModelError(
                f"{folder} holds other tensors than this adapter has, {differing[0]} for one; give the folder of this adapter."
            )
        set_peft_model_state_dict(self.module, tensors)


class AddingTuner(PeftTuner):
    """A tuner of adding layers."""

    def edited(self, setting: Strength) -> AbstractContextManager[None]:
        """Every adapter at this strength."""
        return strengths_at(self.layers, setting)


def strengths_at(layers: Sequence[Any], setting: Strength) -> AbstractContextManager[None]:
    """Layers with a strength at this one, which whoever takes it from a user has checked: a number, or one per row."""
    value = setting.detach().to(torch.float32) if isinstance(setting, Tensor) else float(setting)
    return temporarily("strength", value, layers)


def _one(given: Strength, why: str) -> float:
    """The strength that all rows have. Raises ControlError where they differ."""
    if not isinstance(given, Tensor):
        return given
    if not bool((given == given.reshape(-1)[0]).all()):
        raise ControlError(f"this adapter takes one strength per batch, not one per row: {why}.")
    return float(given.reshape(-1)[0])


@contextmanager
def both(one: AbstractContextManager[None], other: AbstractContextManager[None]) -> Iterator[None]:
    with one, other:
        yield
