"""IA3 (arXiv 2205.05638) as PEFT builds it; the tuner interpolates each factor between 1 and what was learned."""

from __future__ import annotations

from contextlib import AbstractContextManager

import peft
import torch
from peft.tuners.ia3 import IA3Layer
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from transformers import PreTrainedModel

from alignlab.errors import ConfigError, ModelError
from alignlab.models.strength import Strength
from alignlab.tuners.config import Ia3Config
from alignlab.tuners.peft_tuner import PeftTuner, stores_transposed
from alignlab.tuners.targets import matched
from alignlab.tuners.tuner import between


class Ia3Tuner(PeftTuner):
    """Activations times 1 + s (l - 1)."""

    per_row = False

    def edited(self, setting: Strength) -> AbstractContextManager[None]:
        """Factors between 1 (strength 0) and learned (1), or beyond."""
        factors = [factor for layer in self.layers if isinstance(layer, IA3Layer) for factor in layer.ia3_l.parameters()]
        return between([(factor, torch.ones_like(factor)) for factor in factors], setting)


def build(config: Ia3Config, model: PreTrainedModel) -> Ia3Tuner:
    """Attaches IA3 to the named linear maps, or where peft's own table puts it for this kind of model.

    Raises ConfigError for targets that the model does not have, ModelError where peft has no choice for it.
    """
    kind = model.config.model_type
    if config.targets is None and kind not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        raise ModelError(
            f"peft has no choice of its own where IA3 sits in models of type {kind!r}; give tuner.targets, and of them in"
            " tuner.feedforward those whose input is scaled."
        )
    if config.targets is not None:
        _check(config, model)
    return Ia3Tuner(
        model,
        peft.IA3Config(
            target_modules=config.targets,
            feedforward_modules=config.feedforward,
            fan_in_fan_out=stores_transposed(model),
        ),
    )


def _check(config: Ia3Config, model: PreTrainedModel) -> None:
    kind = model.config.model_type
    targets = matched(model, config.targets, "tuner.targets")
    if config.feedforward is None:
        if kind not in TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING:
            raise ModelError(
                f"peft does not know the feed-forward layers of models of type {kind!r}; say in tuner.feedforward which of"
                " tuner.targets have their input scaled ([] for none)."
            )
        return
    inputs = matched(model, config.feedforward, "tuner.feedforward")
    outside = [name for name in inputs if name not in targets]
    if outside:
        raise ConfigError(f"tuner.feedforward names {outside[0]}, which is none of tuner.targets; name some of them.")
