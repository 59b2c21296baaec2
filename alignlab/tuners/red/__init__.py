"""RED, representation editing: one scale and one shift vector per block, on the output of the feed-forward layer."""

from alignlab.tuners.peft_types import register
from alignlab.tuners.red.config import RedConfig, red_plus_targets, red_targets
from alignlab.tuners.red.layer import RedEdit, RedLayer, strength
from alignlab.tuners.red.model import RedModel

__all__ = ["RedConfig", "RedEdit", "RedLayer", "RedModel", "red_plus_targets", "red_targets", "strength"]

register("red", RedConfig, RedModel)
