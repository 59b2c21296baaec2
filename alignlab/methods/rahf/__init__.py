"""RAHF (arXiv 2312.15997): a LoRA moves hidden states by a direction of preference. Rows, LoRRA among them, are lists of its
stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.methods.rahf.config import RahfConfig
from alignlab.registry import Entry

if TYPE_CHECKING:
    from alignlab.training.stages import Method


def build(config: RahfConfig) -> Method:
    """The stages that the variant names."""
    from alignlab.methods.rahf.stages import method

    return method(config)


def requires(config: RahfConfig) -> frozenset[str]:
    """Pairs, their likelihood, states and prefixes. With `fit`, a tuner that leaves the blocks in place. Where the model was
    instructed and nothing is fitted, a control of prefixes to decode with."""
    always = {"pairs", "token likelihood", "hidden states", "text in front of prompts"}
    if "fit" in config.stages:
        return frozenset({*always, "blocks in place"})
    return frozenset({*always, "classes as text"} if "instruct" in config.stages else always)


def provides(config: RahfConfig) -> frozenset[str]:
    """Where the model was instructed and nothing is fitted, its prefixes are classes that it has learned."""
    learns_classes = "instruct" in config.stages and "fit" not in config.stages
    return frozenset({"training", "labelled training"} if learns_classes else {"training"})


ENTRY = Entry(RahfConfig, build, requires=requires, provides=provides)
