"""Methods of one likelihood stage, `fit`: supervised fine-tuning, RED (arXiv 2402.15179, section 4.3) and pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from alignlab.data.encode import Liked, every
from alignlab.methods.config import MethodConfig
from alignlab.registry import Entry, capabilities, number
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
class ChosenConfig(LikelihoodConfig):
    """One likelihood stage on good responses. `least_score`: the lowest score of a response that is trained on, where responses
    have scores; null = there are none, or labels decide. `sources`: of a mixture, those that are trained on; null = all."""

    least_score: Annotated[float | None, number()]
    sources: list[str] | None


@dataclass
class PretrainConfig(LikelihoodConfig):
    """One likelihood stage, on the corpus."""

    def reads(self, stage: str) -> tuple[str, int]:
        """The corpus."""
        return "corpus", 1


def build_chosen(config: ChosenConfig) -> Method:
    """`fit`, on good responses: those labelled so, or scored so, or the only ones where nothing else is known of them."""
    return build(config, Liked(config.least_score), sources=config.sources)


def build(
    config: LikelihoodConfig,
    view: View,
    split: str = "train",
    start: str = "pretrained",
    sources: Sequence[str] | None = None,
) -> Method:
    """`fit`: the tuner, by the mean negative log-likelihood per token of what `view` makes of the records."""
    from alignlab.training.objectives import nll
    from alignlab.training.stages import Method, TrainStage

    wanted = None if sources is None else tuple(sources)
    return Method(config.name, (TrainStage("fit", split, view, nll, config.fit, sources=wanted),), start=start)


def build_pretrain(config: PretrainConfig) -> Method:
    """`fit`: every weight, drawn anew from the seed, on the corpus. The embedded models were made by it."""
    return build(config, every, split="corpus", start="random")


CHOSEN = Entry(ChosenConfig, build_chosen, requires=capabilities("chosen"), provides=capabilities("training"))
"""`sft` and `red`: the same training; the config of `red` chooses the tuner `red`."""
PRETRAIN = Entry(
    PretrainConfig, build_pretrain, requires=capabilities("corpus", "every weight"), provides=capabilities("training")
)
