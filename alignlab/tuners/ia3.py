"""IA3 (arXiv 2205.05638) as peft builds it; the knob interpolates each factor between 1 and what was learned."""

from __future__ import annotations

from contextlib import AbstractContextManager

import peft
import torch
from transformers import PreTrainedModel

from alignlab.models.knob import Strength
from alignlab.tuners.config import Ia3Config
from alignlab.tuners.peft_tuner import PeftTuner, stores_transposed
from alignlab.tuners.tuner import between


class Ia3Tuner(PeftTuner):
    """Activations times 1 + s (l - 1)."""

    per_row = False

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """Factors between 1 (strength 0) and learned (1), or beyond."""
        return between([(parameter, torch.ones_like(parameter)) for parameter in self.parameters()], setting)


def build(_config: Ia3Config, model: PreTrainedModel) -> Ia3Tuner:
    """Attaches IA3 where peft's own table puts it for this kind of model."""
    return Ia3Tuner(model, peft.IA3Config(task_type="CAUSAL_LM", fan_in_fan_out=stores_transposed(model)))
