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
from alignlab.registry import Entry, Registry, words


def _pairs(_config: Any) -> frozenset[str]:
    return frozenset({"pairs", "chosen"})


def _toy(_config: Any) -> frozenset[str]:
    return frozenset({"pairs", "chosen", "corpus", "oracle", "scores", "attributes"})


SOURCES = Registry(
    "data",
    {
        "toy": Entry(ToyConfig, toy_stories.build, offers=_toy),
        "toy_classes": Entry(ToyClassesConfig, toy_classes.build, offers=words("chosen", "label set")),
        "text_classification": Entry(TextClassificationConfig, text_classification.build, offers=words("chosen", "label set")),
        "hh_rlhf": Entry(HhConfig, hh_rlhf.build, offers=_pairs),
        "ultrafeedback": Entry(FramedConfig, ultrafeedback.build, offers=_pairs),
        "ultrafeedback_cleaned": Entry(FramedConfig, ultrafeedback.build, offers=_pairs),
        "summaries": Entry(SummariesConfig, summaries.build, offers=_pairs),
        "jsonl": Entry(JsonlConfig, jsonl.build, offers=jsonl.offers),
        "mixture": Entry(mixture.MixtureConfig, mixture.build, offers=mixture.offers),
    },
)
