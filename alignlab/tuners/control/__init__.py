"""Controls: a soft prompt, a token, a phrase or a LoRA per class of answers, any class in any row of a batch."""

from alignlab.tuners.control.config import ControlConfig
from alignlab.tuners.control.layer import ControlEmbedding, ControlFactors, ControlLora, ControlTable, class_at
from alignlab.tuners.control.tuner import ControlModel, ControlTuner
from alignlab.tuners.peft_tuner import register

__all__ = ["ControlConfig", "ControlEmbedding", "ControlFactors", "ControlLora", "ControlModel", "ControlTable", "class_at"]

register("control", ControlConfig, ControlModel, ControlTuner)
