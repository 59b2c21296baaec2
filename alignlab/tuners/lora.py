"""LoRA (arXiv 2106.09685) as peft builds it; the tuner scales the update, one strength per row if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import peft
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ControlError, ModelError
from alignlab.models.anatomy import shape_of
from alignlab.models.config import Shape
from alignlab.models.kinds import new_head
from alignlab.models.strength import Strength
from alignlab.tuners.config import LoraConfig, LowerLoraConfig
from alignlab.tuners.peft_tuner import PeftTuner, stores_transposed
from alignlab.tuners.targets import LINEAR, block_names, matched
from alignlab.tuners.tuner import setting

OVERWRITING = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Beginnings of peft's `init_lora_weights` that take the start of the update out of the backbone's own weights."""


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
        """The update times the strength; what else a variant does, a magnitude for one, is there or is not."""
        variants = [layer for layer in self.layers if getattr(layer, "lora_variant", None)]
        if variants and strength == 0.0:
            with setting("_disable_adapters", True, self.layers):
                yield
            return
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
                    hooks.append(layer.register_forward_pre_hook(_turned(strength, scaling)))
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
            return "a variant of LoRA, such as DoRA, is there or is not, for all rows"
        if any(isinstance(layer, ParamWrapper) for layer in self.layers):
            return "a LoRA on a bare parameter changes the weight that all rows share"
        return super()._shared_by_rows()


def _turned(setting_R: Tensor, scaling: dict[str, float]) -> Callable[[Any, tuple[Any, ...]], None]:
    """A hook that shapes the rows' numbers as the layer's input is: rows in front, or rows and time in one dimension.

    Raises ControlError, inside, for an input of other rows.
    """

    def turn(layer: Any, inputs: tuple[Any, ...]) -> None:
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

    return turn


def build(config: LoraConfig, model: PreTrainedModel) -> LoraTuner:
    """Attaches LoRA to the named linear maps, to all but the head, or to peft's own choice; in some blocks or in all."""
    return LoraTuner(model, adapter(config, model))


def adapter(config: LoraConfig, model: PreTrainedModel) -> peft.LoraConfig:
    """The config as peft's configuration for this model.

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
    if blocks is None:
        return config.targets or "all-linear"
    if config.targets and not isinstance(config.targets, str):
        return list(config.targets)
    every = found or [name for name, module in model.named_modules() if isinstance(module, LINEAR)]
    inside = tuple(f"{block_names(model)[index]}." for index in blocks)
    return [name for name in every if name.startswith(inside)]


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
