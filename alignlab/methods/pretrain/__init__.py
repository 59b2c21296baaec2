"""Pretraining from new weights: how the embedded models were made. One stage, `fit`, on the corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.registry import Entry
from alignlab.training.config import FitConfig

if TYPE_CHECKING:
    from alignlab.training.method import Method


@dataclass
class PretrainConfig:
    """One likelihood stage over all weights."""

    name: str
    fit: FitConfig

    def check(self) -> None:
        """Raises ConfigError for settings that cannot train."""
        self.fit.check("method.fit")


def build(config: PretrainConfig) -> Method:
    """`fit`: every weight, drawn anew from the seed, on the corpus."""
    from alignlab.data import views
    from alignlab.training.method import Method
    from alignlab.training.objectives import nll
    from alignlab.training.stages import TrainStage

    return Method(config.name, (TrainStage("fit", "corpus", views.every, nll, config.fit),), start="random")


ENTRY = Entry(PretrainConfig, build, needs=frozenset({"corpus", "every weight"}))
