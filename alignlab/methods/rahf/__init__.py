"""RAHF (arXiv 2312.15997): hidden states move to where preference points. Rows, LoRRA among them, are lists of its stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.methods.rahf.config import RahfConfig
from alignlab.registry import Entry

if TYPE_CHECKING:
    from alignlab.training.method import Method


def build(config: RahfConfig) -> Method:
    """The stages that the variant names."""
    from alignlab.methods.rahf.stages import method

    return method(config)


def needs(config: RahfConfig) -> frozenset[str]:
    """Pairs, their likelihood, states and prefixes; a tuner that leaves the blocks where they are, or where nothing is fitted
    and the model was instructed, a prefix to decode with."""
    words = {"pairs", "token likelihood", "hidden states", "text in front of prompts"}
    if "fit" in config.stages:
        return frozenset({*words, "blocks in place"})
    return frozenset({*words, "classes in words"} if "instruct" in config.stages else words)


def offers(config: RahfConfig) -> frozenset[str]:
    """Where the model was instructed, its prefixes are classes that it has learned."""
    labelled = "instruct" in config.stages and "fit" not in config.stages
    return frozenset({"training", "labelled training"} if labelled else {"training"})


ENTRY = Entry(RahfConfig, build, requires=needs, provides=offers)
