"""A method without stages, to evaluate a backbone, or two checkpoints mixed at the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.methods.config import MethodConfig
from alignlab.registry import Entry, capabilities

if TYPE_CHECKING:
    from alignlab.training.stages import Method


@dataclass
class EvaluateConfig(MethodConfig):
    """Nothing to set."""

    name: str


def build(config: EvaluateConfig) -> Method:
    """No stage."""
    from alignlab.training.stages import Method

    return Method(config.name, ())


ENTRY = Entry(EvaluateConfig, build, provides=capabilities("no training", "reward training"))
