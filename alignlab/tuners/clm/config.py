"""What a CLM adapter needs to be rebuilt."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

from alignlab.errors import ConfigError
from alignlab.tuners.config import MERGES, MOST_BLOCKS, STARTS
from alignlab.tuners.peft_types import grow


@dataclass
class ClmConfig(PeftConfig):
    """The configuration of a CLM adapter.

    Raises:
        ConfigError: a number of blocks or a start that does not exist, or one of `target_modules` and `writes` alone.
    """

    blocks: int = field(default=1, metadata={"help": "Blocks put in front of the first one: 1 to 3."})
    start: str = field(default="identity", metadata={"help": "identity (zeroed copies of the first block) or random."})
    merge: str = field(
        default="logits", metadata={"help": "What the dial mixes: logits (the paper's) or embeddings (not the paper's)."}
    )
    target_modules: str | None = field(
        default=None, metadata={"help": "Full-match pattern of the first block's name; None: from the table of layouts."}
    )
    writes: list[str] | None = field(
        default=None, metadata={"help": "Modules of the block that write into the residual stream; None: from the table."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules beside the block that are trained and saved."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = grow("CLM")
        if not 1 <= self.blocks <= MOST_BLOCKS:
            raise ConfigError(f"CLM takes 1 to {MOST_BLOCKS} blocks, got {self.blocks}.")
        if self.start not in STARTS:
            raise ConfigError(f"unknown start {self.start!r} for CLM; known: {', '.join(STARTS)}.")
        if self.merge not in MERGES:
            raise ConfigError(f"unknown merge {self.merge!r} for CLM; known: {', '.join(MERGES)}.")
        if (self.target_modules is None) != (self.writes is None):
            raise ConfigError("CLM's target_modules and writes describe one block together; give both, or neither.")
