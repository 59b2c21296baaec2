"""Pretraining from new weights: how the embedded models were made. One stage, `fit`, on the corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.data.encode import every
from alignlab.methods.likelihood import LikelihoodConfig, one_stage
from alignlab.registry import Entry, capabilities

if TYPE_CHECKING:
    from alignlab.training.method import Method


@dataclass
class PretrainConfig(LikelihoodConfig):
    """One likelihood stage, on the corpus."""

    def reads(self, stage: str) -> tuple[str, int]:
        """The corpus."""
        return "corpus", 1


def build(config: PretrainConfig) -> Method:
    """`fit`: every weight, drawn anew from the seed, on the corpus."""
    return one_stage(config, every, split="corpus", start="random")


ENTRY = Entry(PretrainConfig, build, requires=capabilities("corpus", "every weight"), provides=capabilities("training"))
