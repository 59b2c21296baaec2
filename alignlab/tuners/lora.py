"""LoRA (arXiv 2106.09685) as PEFT builds it: as a tuner with one strength per row if asked, and as an update of a backbone."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.models.anatomy import shape_of
from alignlab.models.config import Shape
from alignlab.models.kinds import new_head, task_type_of
from alignlab.models.strength import Strength
from alignlab.tuners.config import LoraConfig, LowerLoraConfig
from alignlab.tuners.peft_tuner import PeftTuner, stores_transposed, temporarily
from alignlab.tuners.targets import LINEAR, block_names, matched
from alignlab.tuners.weights import read, write

OVERWRITING = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Beginnings of peft's `init_lora_weights` that take the start of the update out of the backbone's own weights."""

UPDATE = "fine_tuning"
"""Of the adapter in peft; torch keeps "update" for itself."""
UPDATE_FILE = "adapter_model.safetensors"


class LoraTuner(PeftTuner):
    """W x + s * (alpha / r) B A x."""

    def _find(self) -> None:
        super()._find()
        self._lost = _lost(self.module)

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """The update times `setting`; a tensor holds one number per row, where every part of the adapter has one.

        Raises ControlError for a LoRA without a way back to its backbone, and for a strength that a variant does not have.
        """
        if self._lost and not (isinstance(setting, float) and setting == 1.0):
            raise ControlError(f"this LoRA has no other strength than 1: {self._lost}.")
        return super().at(setting)

    def off(self) -> AbstractContextManager[None]:
        """Without the adapter. Raises ControlError where the backbone's own weights are gone."""
        if self._lost:
            raise ControlError(f"this LoRA cannot be switched off: {self._lost}.")
        return super().off()

    @contextmanager
    def edited(self, strength: Strength) -> Iterator[None]:
        """The update times the strength. Raises ControlError for a variant such as DoRA at a strength other than 0 and 1."""
        if not isinstance(strength, Tensor) and strength == 0.0:  # off costs nothing
            with temporarily("_disable_adapters", True, self.layers):
                yield
            return
        variants = [layer for layer in self.layers if getattr(layer, "lora_variant", None)]
        if variants:
            kind = type(next(iter(variants[0].lora_variant.values()))).__name__
            raise ControlError(
                f"a LoRA of peft's kind {kind} has the strengths 0 and 1 only, not {strength}; take a plain one."
            )
        before = [dict(layer.scaling) for layer in self.layers]
        hooks = []
        try:
            for layer, scaling in zip(self.layers, before, strict=True):
                if isinstance(strength, Tensor):
                    hooks.append(layer.register_forward_pre_hook(_scaled_per_row(strength, scaling)))
                else:
                    layer.scaling = {name: scale * strength for name, scale in scaling.items()}
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for layer, scaling in zip(self.layers, before, strict=True):
                layer.scaling = scaling

    def _shared_by_rows(self) -> str:
        if any(getattr(layer, "lora_variant", None) for layer in self.layers):
            return "a variant of LoRA, such as DoRA, is on or off for all rows"
        if any(isinstance(layer, ParamWrapper) for layer in self.layers):
            return "a LoRA on a bare parameter changes the weight that all rows share"
        return super()._shared_by_rows()


def _scaled_per_row(setting_R: Tensor, scaling: dict[str, float]) -> Callable[[Any, tuple[Any, ...]], None]:
    """A hook that shapes the rows' numbers as the layer's input is: rows in front, or rows and time in one dimension.

    Raises ControlError, inside, for an input of other rows.
    """

    def scale_rows(layer: Any, inputs: tuple[Any, ...]) -> None:
        states = inputs[0]
        rows, times = len(setting_R), len(states) // len(setting_R)
        if len(states) == rows:
            # An embedding's ids have one dimension less than what comes out.
            factor = setting_R.view(-1, *[1] * (states.dim() - int(states.is_floating_point())))
        elif states.dim() == 2 and len(states) == rows * times:
            factor = setting_R.repeat_interleave(times)[:, None]
        else:
            raise ControlError(f"{rows} strengths do not fit the {len(states)} rows of a layer's input; give one number.")
        layer.scaling = {name: scale * factor for name, scale in scaling.items()}

    return scale_rows


def build(config: LoraConfig, model: PreTrainedModel) -> LoraTuner:
    """Attaches LoRA to the named linear maps, to all but the head, or to peft's own choice; in some blocks or in all."""
    return LoraTuner(model, adapter(config, model))


def adapter(config: LoraConfig, model: PreTrainedModel) -> peft.LoraConfig:
    """PEFT's configuration for this model.

    Raises ConfigError for layers outside it and for targets that it does not have, ModelError where peft has no choice for it.
    """
    blocks = _blocks(config, shape_of(model)) if isinstance(config, LowerLoraConfig) else None
    targets = _targets(config, model, blocks)
    # peft limits names to some blocks, but neither a pattern nor "all-linear": those are written out here.
    written_out = blocks is not None and targets is not None and targets != config.targets
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        fan_in_fan_out=stores_transposed(model),
        target_modules=targets,
        exclude_modules=_new_head(model),
        layers_to_transform=None if written_out else blocks,
    )


def _new_head(model: PreTrainedModel) -> str | None:
    """A pattern for the modules of a classifier's head, which is trained whole and takes no update; None without one."""
    parts = sorted({name.partition(".")[0] for name in new_head(model)})
    return rf"({'|'.join(parts)})(\..*)?" if parts else None


def _targets(config: LoraConfig, model: PreTrainedModel, blocks: list[int] | None) -> list[str] | str | None:
    if config.targets is None:
        kind = model.config.model_type
        if kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
            raise ModelError(
                f"peft has no choice of its own where a LoRA sits in models of type {kind!r}; give tuner.targets, a list of"
                " names, or [] for every linear map but the head."
            )
        return None
    found = matched(model, config.targets, "tuner.targets", (*LINEAR, nn.Embedding)) if config.targets else []
    _refuse_head_alone(config, model)
    if blocks is None:
        return config.targets or "all-linear"
    if config.targets and not isinstance(config.targets, str):
        return list(config.targets)
    every = found or [name for name, module in model.named_modules() if isinstance(module, LINEAR)]
    inside = tuple(f"{block_names(model)[index]}." for index in blocks)
    return [name for name in every if name.startswith(inside)]


def _refuse_head_alone(config: LoraConfig, model: PreTrainedModel) -> None:
    """Raises ConfigError for a target that names the new head of a classifier and nothing else: peft would pass over it."""
    head = _new_head(model)
    for target in config.targets if head and isinstance(config.targets, list) else []:
        names = matched(model, [target], "tuner.targets", (*LINEAR, nn.Embedding))
        if all(re.fullmatch(str(head), name) for name in names):
            raise ConfigError(
                f"tuner.targets: {target!r} names {names[0]}, the new head, which is trained whole and takes no update;"
                " leave it out."
            )


def _blocks(config: LowerLoraConfig, shape: Shape) -> list[int]:
    """Blocks as peft counts them, from 0: layer l is the output of block l - 1."""
    return list(range(min(max(config.below.of(shape)) + config.beyond, shape.blocks)))


def _lost(model: peft.PeftModel) -> str:
    """What of the backbone an adapter has overwritten, as the end of a sentence; empty where nothing."""
    for name in model.active_adapters:
        config = model.peft_config[name]
        bias = getattr(config, "bias", "none")
        if bias != "none":
            return f"it was trained with bias={bias!r}, which overwrites the backbone's own biases; take bias='none'"
        start = getattr(config, "init_lora_weights", True)
        if isinstance(start, str) and start.lower().startswith(OVERWRITING):
            return (
                f"its start {start!r} was taken out of the backbone's weights; save it with peft's"
                " path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
            )
    return ""


@dataclass(frozen=True)
class UpdateShape:
    """LoRA on peft's own choice of linear maps, usually queries and values, in every block."""

    rank: int
    alpha: float
    dropout: float


class Update:
    """A LoRA in float32, saved as a PEFT adapter. Until `remove` it is in the model, and a tuner's own LoRA is inactive."""

    def __init__(self, model: PreTrainedModel, shape: UpdateShape) -> None:
        self._model = model
        self._config = peft.LoraConfig(
            task_type=task_type_of(model),
            r=shape.rank,
            lora_alpha=shape.alpha,
            lora_dropout=shape.dropout,
            fan_in_fan_out=stores_transposed(model),
        )
        learned = {parameter for parameter in model.parameters() if parameter.requires_grad}
        self._active = {layer: list(layer.active_adapters) for layer in _layers(model).values()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*`peft_config`.*")  # the tuner's own may be a LoRA, too
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            peft.inject_adapter_in_model(self._config, model, adapter_name=UPDATE)
        for layer in _layers(model).values():
            layer.set_adapter(UPDATE, inference_mode=True)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in learned)
        own = {name: parameter for name, parameter in model.named_parameters() if f".{UPDATE}." in name}
        for parameter in own.values():
            parameter.data = parameter.data.float()
        self._named = {f"base_model.model.{name.replace(f'.{UPDATE}', '')}": parameter for name, parameter in own.items()}

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""
        return list(self._named.values())

    def save(self, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors, as peft does."""
        write(self._named, folder, UPDATE_FILE)
        self._config.save_pretrained(str(folder))

    def load(self, folder: Path) -> None:
        """Reads them back. Raises ModelError where the file is another adapter's."""
        read(self._named, folder, UPDATE_FILE)

    def updated(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Pairs of each weight that has an update and its updated value: the sum in float32, cast to the weight's dtype."""
        layers = [layer for layer in _layers(self._model).values() if UPDATE in layer.lora_A]
        with torch.no_grad():
            pairs = [(layer.get_base_layer().weight, layer.get_delta_weight(UPDATE)) for layer in layers]
            return [(weight, (weight.float() + delta.float()).to(weight.dtype)) for weight, delta in pairs]

    def remove(self) -> None:
        """Takes the update out of the model, whose modules are as before; the tuner's own LoRA is active again."""
        learned = {parameter for parameter in self._model.parameters() if parameter.requires_grad}
        for name, layer in _layers(self._model).items():
            if layer not in self._active:  # a linear map that had no LoRA
                parent, _, child = name.rpartition(".")
                setattr(self._model.get_submodule(parent), child, layer.get_base_layer())
                continue
            layer.set_adapter(self._active[layer], inference_mode=True)
            if UPDATE in layer.lora_A:
                layer.delete_adapter(UPDATE)
        self._model.peft_config.pop(UPDATE)
        for parameter in self._model.parameters():
            parameter.requires_grad_(parameter in learned)


def _layers(model: PreTrainedModel) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
