"""Supervised fine-tuning: the likelihood of the chosen response. One stage, `fit`; any tuner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.data.encode import chosen
from alignlab.methods.likelihood import LikelihoodConfig, one_stage
from alignlab.registry import Entry, capabilities

if TYPE_CHECKING:
    from alignlab.training.method import Method


def build(config: LikelihoodConfig) -> Method:
    """`fit`: the tuner, on chosen responses."""
    return one_stage(config, chosen)


ENTRY = Entry(LikelihoodConfig, build, requires=capabilities("chosen"), provides=capabilities("training"))
