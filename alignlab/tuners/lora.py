"""LoRA (arXiv 2106.09685) as peft builds it; the knob scales the update, one strength per row if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import peft
from torch import Tensor
from transformers import PreTrainedModel

from alignlab.errors import ControlError
from alignlab.models.anatomy import shape_of
from alignlab.models.config import Shape
from alignlab.models.knob import Strength
from alignlab.tuners.config import LoraConfig, LowerLoraConfig
from alignlab.tuners.peft_tuner import PeftTuner, stores_transposed


class LoraTuner(PeftTuner):
    """W x + s * (alpha / r) B A x."""

    @contextmanager
    def at(self, setting: Strength) -> Iterator[None]:
        """The update times `setting`; a tensor holds one number per row."""
        if isinstance(setting, float) and setting == 1.0:
            yield
            return
        before = [dict(layer.scaling) for layer in self.layers]
        hooks = []
        try:
            for layer, scaling in zip(self.layers, before, strict=True):
                if isinstance(setting, Tensor):
                    hooks.append(layer.register_forward_pre_hook(_turned(setting, scaling)))
                else:
                    layer.scaling = {name: scale * setting for name, scale in scaling.items()}
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for layer, scaling in zip(self.layers, before, strict=True):
                layer.scaling = scaling


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
    """The sheet as peft's configuration for this model. Raises ConfigError for layers outside it."""
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        fan_in_fan_out=stores_transposed(model),
        target_modules=None if config.targets is None else list(config.targets) or "all-linear",
        layers_to_transform=_blocks(config, shape_of(model)) if isinstance(config, LowerLoraConfig) else None,
    )


def _blocks(config: LowerLoraConfig, shape: Shape) -> list[int]:
    """Blocks as peft counts them, from 0: layer l is the output of block l - 1."""
    return list(range(min(max(config.below.of(shape)) + config.beyond, shape.blocks)))
