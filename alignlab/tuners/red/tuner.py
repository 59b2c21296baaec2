"""RED as a tuner of the frame: where it is attached, and its knob."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from transformers import PreTrainedModel

from alignlab.models.knob import Strength
from alignlab.tuners.config import RedTunerConfig
from alignlab.tuners.peft_tuner import PeftTuner
from alignlab.tuners.red.config import RedConfig, red_plus_targets, red_targets
from alignlab.tuners.red.layer import strength


class RedTuner(PeftTuner):
    """s(c) = 1 + c (s - 1), l(c) = c l: 0 is the backbone, 1 the trained model, one strength per row if asked."""

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """Every edit at this strength."""
        if isinstance(setting, float) and setting == 1.0:
            return nullcontext()
        return strength(self.module, setting)


def build(config: RedTunerConfig, model: PreTrainedModel) -> RedTuner:
    """Attaches the edits at RED's or RED+'s places for this kind of model."""
    targets = red_plus_targets if config.place == "plus" else red_targets
    pattern = targets(model.config.model_type)
    return RedTuner(model, RedConfig(task_type="CAUSAL_LM", target_modules=pattern, edit=config.edit))
