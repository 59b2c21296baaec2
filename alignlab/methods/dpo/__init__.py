"""Preference optimisation on pairs (DPO and its relatives). One stage, `prefer`; any tuner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.methods.preference import PreferenceConfig, prefer
from alignlab.registry import Entry, words

if TYPE_CHECKING:
    from alignlab.training.method import Method


def build(config: PreferenceConfig) -> Method:
    """`prefer`: the tuner, on pairs, by a preference loss."""
    from alignlab.training.method import Method

    return Method(config.name, (prefer(config),))


ENTRY = Entry(PreferenceConfig, build, needs=words("pairs"))
