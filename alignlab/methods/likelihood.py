"""Methods of one likelihood stage, `fit`: supervised fine-tuning, RED (arXiv 2402.15179, section 4.3) and pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.data.encode import chosen, every
from alignlab.methods.config import MethodConfig
from alignlab.registry import Entry, capabilities
from alignlab.training.config import FitConfig

if TYPE_CHECKING:
    from alignlab.records import View
    from alignlab.training.stages import Method


@dataclass
class LikelihoodConfig(MethodConfig):
    """One likelihood stage."""

    name: str
    fit: FitConfig

    def fits(self) -> dict[str, FitConfig]:
        return {"fit": self.fit}


@dataclass
class PretrainConfig(LikelihoodConfig):
    """One likelihood stage, on the corpus."""

    def reads(self, stage: str) -> tuple[str, int]:
        """The corpus."""
        return "corpus", 1


def build(config: LikelihoodConfig, view: View = chosen, split: str = "train", start: str = "pretrained") -> Method:
    """`fit`: the tuner, by the mean negative log-likelihood per token of the chosen responses."""
    from alignlab.training.objectives import nll
    from alignlab.training.stages import Method, TrainStage

    return Method(config.name, (TrainStage("fit", split, view, nll, config.fit),), start=start)


def build_pretrain(config: PretrainConfig) -> Method:
    """`fit`: every weight, drawn anew from the seed, on the corpus. The embedded models were made by it."""
    return build(config, every, split="corpus", start="random")


CHOSEN = Entry(LikelihoodConfig, build, requires=capabilities("chosen"), provides=capabilities("training"))
"""`sft` and `red`: the same training; the config of `red` chooses the tuner `red`."""
PRETRAIN = Entry(
    PretrainConfig, build_pretrain, requires=capabilities("corpus", "every weight"), provides=capabilities("training")
)
