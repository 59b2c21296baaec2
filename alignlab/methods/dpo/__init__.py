"""Preference optimisation on pairs (DPO and its relatives): `sft` if asked for, then `prefer`; any tuner."""

from __future__ import annotations

from alignlab.methods.preference import PreferenceConfig, stages
from alignlab.registry import Entry, capabilities

ENTRY = Entry(PreferenceConfig, stages, requires=capabilities("pairs"), provides=capabilities("training"))
