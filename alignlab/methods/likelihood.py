"""What methods of a single likelihood stage have in common: `sft`, `red` and `pretrain` differ in their data and configs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.methods.config import MethodConfig
from alignlab.training.config import FitConfig

if TYPE_CHECKING:
    from alignlab.records import View
    from alignlab.training.method import Method


@dataclass
class LikelihoodConfig(MethodConfig):
    """One likelihood stage."""

    name: str
    fit: FitConfig

    def check(self) -> None:
        """Raises ConfigError for settings that cannot train."""
        self.fit.check("method.fit")

    def fits(self) -> dict[str, FitConfig]:
        return {"fit": self.fit}


def one_stage(config: LikelihoodConfig, view: View, *, split: str = "train", start: str = "pretrained") -> Method:
    """`fit`: the tuner, by mean negative log-likelihood per token."""
    from alignlab.training.method import Method
    from alignlab.training.objectives import nll
    from alignlab.training.stages import TrainStage

    return Method(config.name, (TrainStage("fit", split, view, nll, config.fit),), start=start)
