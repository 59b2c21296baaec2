"""LoRA (arXiv 2106.09685) as peft builds it; the knob scales the update, one strength per row if asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import peft
from torch import Tensor
from transformers import PreTrainedModel

from alignlab.models.backbone import shape_of
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
        factor = setting[:, None, None] if isinstance(setting, Tensor) else setting
        before = [dict(layer.scaling) for layer in self.layers]
        try:
            for layer, scaling in zip(self.layers, before, strict=True):
                layer.scaling = {name: scale * factor for name, scale in scaling.items()}
            yield
        finally:
            for layer, scaling in zip(self.layers, before, strict=True):
                layer.scaling = scaling


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
