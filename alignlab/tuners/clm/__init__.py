"""CLM: identity blocks in front of the first block, and two streams mixed at the logits."""

from alignlab.tuners.clm.blocks import ClmBlocks
from alignlab.tuners.clm.config import ClmConfig
from alignlab.tuners.clm.layer import ClmLayer, block_at
from alignlab.tuners.clm.layouts import BLOCK_LAYOUTS, BlockLayout
from alignlab.tuners.clm.model import ClmModel
from alignlab.tuners.peft_types import register

__all__ = ["BLOCK_LAYOUTS", "BlockLayout", "ClmBlocks", "ClmConfig", "ClmLayer", "ClmModel", "block_at"]

register("clm", ClmConfig, ClmModel)
