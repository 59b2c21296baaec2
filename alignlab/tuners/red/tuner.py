"""RED as a tuner of the frame: where it is attached, and its tuner."""

from __future__ import annotations

from contextlib import AbstractContextManager

from transformers import PreTrainedModel

from alignlab.models.strength import Strength
from alignlab.tuners.config import RedTunerConfig
from alignlab.tuners.peft_tuner import PeftTuner
from alignlab.tuners.red.config import RedConfig, red_plus_targets, red_targets
from alignlab.tuners.red.layer import strength
from alignlab.tuners.targets import matched


class RedTuner(PeftTuner):
    """s(c) = 1 + c (s - 1), l(c) = c l: 0 is the backbone, 1 the trained model, one strength per row if asked."""

    def edited(self, setting: Strength) -> AbstractContextManager[None]:
        """Every edit at this strength."""
        return strength(self.module, setting)


def build(config: RedTunerConfig, model: PreTrainedModel) -> RedTuner:
    """Attaches the edits to the named layers, or at RED's or RED+'s places for this kind of model.

    Raises ConfigError for targets that the model does not have, ModelError for a kind of model whose places are not known.
    """
    if config.targets is not None:
        matched(model, config.targets, "tuner.targets")
        return RedTuner(model, RedConfig(target_modules=config.targets, edit=config.edit))
    places = red_plus_targets if config.place == "plus" else red_targets
    return RedTuner(model, RedConfig(target_modules=places(model.config.model_type), edit=config.edit))
