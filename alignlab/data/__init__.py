"""Data sets: one source, one file; everything reaches the frame as records."""

from __future__ import annotations

from typing import Any

from alignlab.data import hh_rlhf, jsonl, mixture, summaries, toy_stories, ultrafeedback
from alignlab.data.config import FramedConfig, HhConfig, JsonlConfig, SummariesConfig, ToyConfig
from alignlab.registry import Entry, Registry


def _pairs(_config: Any) -> frozenset[str]:
    return frozenset({"pairs", "chosen"})


def _toy(_config: Any) -> frozenset[str]:
    return frozenset({"pairs", "chosen", "corpus", "oracle", "scores", "attributes"})


SOURCES = Registry(
    "data",
    {
        "toy": Entry(ToyConfig, toy_stories.build, offers=_toy),
        "hh_rlhf": Entry(HhConfig, hh_rlhf.build, offers=_pairs),
        "ultrafeedback": Entry(FramedConfig, ultrafeedback.build, offers=_pairs),
        "summaries": Entry(SummariesConfig, summaries.build, offers=_pairs),
        "jsonl": Entry(JsonlConfig, jsonl.build, offers=jsonl.offers),
        "mixture": Entry(mixture.MixtureConfig, mixture.build, offers=mixture.offers),
    },
)
