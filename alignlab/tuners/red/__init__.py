"""RED, representation editing: one scale and one shift vector per block, on the output of the feed-forward layer."""

from alignlab.tuners.peft_tuner import register
from alignlab.tuners.red.tuner import RedConfig, RedEdit, RedLayer, RedModel, RedTuner, red_plus_targets, red_targets, strength

__all__ = ["RedConfig", "RedEdit", "RedLayer", "RedModel", "red_plus_targets", "red_targets", "strength"]

register("red", RedConfig, RedModel, RedTuner)
