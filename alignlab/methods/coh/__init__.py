"""Chain of Hindsight (arXiv 2302.02676) without chains: model and control trained together from the start; any control."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from alignlab.methods.controlled import LIKELIHOOD, JointConfig, stages
from alignlab.registry import Entry, capabilities

if TYPE_CHECKING:
    from alignlab.training.method import Method


def build(config: JointConfig) -> Method:
    """`joint` alone, in two halves: a course of as many steps as MEET's two stages, and of the same batches."""
    fit = config.joint
    steps = (None, None) if fit.steps is None else (fit.steps - fit.steps // 2, fit.steps // 2)
    epochs = None if fit.epochs is None else fit.epochs / 2
    first, second = (replace(fit, epochs=epochs, steps=part) for part in steps)
    return stages(config, {"joint": first, "second half": second}, ["joint"])


ENTRY = Entry(
    JointConfig, build, requires=capabilities("controls", *LIKELIHOOD), provides=capabilities("training", "labelled training")
)
