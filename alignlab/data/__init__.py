"""Data sets: one source, one file; everything reaches the frame as records."""

from __future__ import annotations

from typing import Any

from alignlab.data import hh_rlhf, jsonl, mixture, summaries, text_classification, toy_classes, toy_stories, ultrafeedback
from alignlab.data.config import (
    FramedConfig,
    HhConfig,
    JsonlConfig,
    SummariesConfig,
    TextClassificationConfig,
    ToyClassesConfig,
    ToyConfig,
)
from alignlab.registry import Entry, Registry, capabilities


def _pairs(_config: Any) -> frozenset[str]:
    return frozenset({"pairs", "chosen"})


def _toy(_config: Any) -> frozenset[str]:
    return frozenset({"pairs", "chosen", "corpus", "oracle", "scores", "attributes"})


SOURCES = Registry(
    "data",
    {
        "toy": Entry(ToyConfig, toy_stories.build, provides=_toy),
        "toy_classes": Entry(ToyClassesConfig, toy_classes.build, provides=capabilities("chosen", "label set")),
        "text_classification": Entry(
            TextClassificationConfig, text_classification.build, provides=capabilities("chosen", "label set")
        ),
        "hh_rlhf": Entry(HhConfig, hh_rlhf.build, provides=_pairs),
        "ultrafeedback": Entry(FramedConfig, ultrafeedback.build, provides=_pairs),
        "ultrafeedback_cleaned": Entry(FramedConfig, ultrafeedback.build, provides=_pairs),
        "summaries": Entry(SummariesConfig, summaries.build, provides=_pairs),
        "jsonl": Entry(JsonlConfig, jsonl.build, provides=jsonl.offers),
        "mixture": Entry(mixture.MixtureConfig, mixture.build, provides=mixture.offers),
    },
)
