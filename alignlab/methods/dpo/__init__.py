"""Preference optimisation on pairs (DPO and its relatives): `sft` if asked for, then `prefer`; any tuner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.methods.preference import PreferenceConfig, needs, stages
from alignlab.registry import Entry

if TYPE_CHECKING:
    from alignlab.training.method import Method


def build(config: PreferenceConfig) -> Method:
    """`sft` moves the backbone on chosen responses; `prefer` the tuner on pairs, by a preference loss."""
    return stages(config)


ENTRY = Entry(PreferenceConfig, build, needs=needs)
