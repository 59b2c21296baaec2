"""Chain of Hindsight (arXiv 2302.02676) without chains: model and control trained together from the start; any control."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.methods.controlled import JointConfig, stages
from alignlab.registry import Entry, words

if TYPE_CHECKING:
    from alignlab.training.method import Method


def build(config: JointConfig) -> Method:
    """`joint` alone."""
    return stages(config, {"joint": config.joint}, ["joint"])


ENTRY = Entry(JointConfig, build, needs=words("controls", "float32 weights"), offers=words("training", "labelled training"))
