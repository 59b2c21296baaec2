"""CLM (arXiv 2503.04346): an SFT model, then an identity block in front of it, tuned alone on pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.errors import ConfigError
from alignlab.methods.preference import PreferenceConfig, prefer
from alignlab.registry import Entry
from alignlab.training.config import FitConfig

if TYPE_CHECKING:
    from alignlab.training.method import Method


@dataclass
class ClmConfig(PreferenceConfig):
    """As dpo, and before it: `sft_first`, whether the backbone is fine-tuned on the chosen responses by `sft`."""

    sft_first: bool
    sft: FitConfig

    def check(self) -> None:
        """Raises ConfigError for what dpo refuses, and for a reference that is not the SFT model."""
        super().check()
        self.sft.check("method.sft")
        if self.sft_first and self.reference == "none":
            raise ConfigError("method.reference=none would ignore the SFT model of method.sft_first=true; set reference=base.")


def build(config: ClmConfig) -> Method:
    """`sft` if asked for: every weight of the backbone, on chosen responses. `prefer`: the tuner, on pairs."""
    from alignlab.data.views import chosen
    from alignlab.training.method import Method
    from alignlab.training.objectives import nll
    from alignlab.training.stages import TrainStage

    sft = TrainStage("sft", "train", chosen, nll, config.sft, moves="backbone")
    return Method(config.name, (sft, prefer(config)) if config.sft_first else (prefer(config),))


def needs(config: ClmConfig) -> frozenset[str]:
    """Pairs; and weights that can be trained in place where there is an `sft` stage."""
    return frozenset({"pairs", "chosen", "float32 weights"} if config.sft_first else {"pairs"})


ENTRY = Entry(ClmConfig, build, needs=needs)
