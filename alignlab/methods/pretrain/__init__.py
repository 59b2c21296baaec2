"""Pretraining from new weights: how the embedded models were made. One stage, `fit`, on the corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.data.views import every
from alignlab.methods.likelihood import LikelihoodConfig, one_stage
from alignlab.registry import Entry, words

if TYPE_CHECKING:
    from alignlab.training.method import Method


def build(config: LikelihoodConfig) -> Method:
    """`fit`: every weight, drawn anew from the seed, on the corpus."""
    return one_stage(config, every, split="corpus", start="random")


ENTRY = Entry(LikelihoodConfig, build, needs=words("corpus", "every weight"), offers=words("training"))
