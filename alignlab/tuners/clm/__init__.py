"""CLM: identity blocks in front of the first block, and two streams mixed at the logits."""

from alignlab.tuners.clm.layer import ClmBlocks, ClmConfig, ClmLayer, block_at
from alignlab.tuners.clm.tuner import ClmModel, ClmTuner
from alignlab.tuners.peft_tuner import register

__all__ = ["ClmBlocks", "ClmConfig", "ClmLayer", "ClmModel", "block_at"]

register("clm", ClmConfig, ClmModel, ClmTuner)
