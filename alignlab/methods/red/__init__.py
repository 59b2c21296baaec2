"""RED (arXiv 2402.15179): edit vectors on the feed-forward output, fitted by likelihood. Its tuner is `red`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.registry import Entry
from alignlab.training.config import FitConfig

if TYPE_CHECKING:
    from alignlab.training.method import Method


@dataclass
class RedMethodConfig:
    """One likelihood stage."""

    name: str
    fit: FitConfig

    def check(self) -> None:
        """Raises ConfigError for settings that cannot train."""
        self.fit.check("method.fit")


def build(config: RedMethodConfig) -> Method:
    """`fit`: the tuner, on chosen responses, by mean negative log-likelihood per token (paper, section 4.3)."""
    from alignlab.data import views
    from alignlab.training.method import Method
    from alignlab.training.objectives import nll
    from alignlab.training.stages import TrainStage

    return Method(config.name, (TrainStage("fit", "train", views.chosen, nll, config.fit),))


ENTRY = Entry(RedMethodConfig, build, needs=frozenset({"chosen"}))
