"""RED (arXiv 2402.15179, section 4.3): the likelihood of the chosen response. Its config chooses the tuner `red`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.data.encode import chosen
from alignlab.methods.likelihood import LikelihoodConfig, one_stage
from alignlab.registry import Entry, capabilities

if TYPE_CHECKING:
    from alignlab.training.method import Method


def build(config: LikelihoodConfig) -> Method:
    """`fit`: the edit vectors, on chosen responses."""
    return one_stage(config, chosen)


ENTRY = Entry(LikelihoodConfig, build, requires=capabilities("chosen"), provides=capabilities("training"))
