"""Backbones and policies. The table of sources stands here; torch is imported when one is loaded."""

from __future__ import annotations

from alignlab.models.config import ModelConfig
from alignlab.models.kinds import KINDS
from alignlab.registry import Entry, Registry, deferred

_FLOAT32 = frozenset({"float32 weights"})
_ENTRY = Entry(
    ModelConfig,
    build=deferred(f"{__name__}.backbone.load"),
    requires=lambda config: KINDS[config.found_kind].requires,
    provides=lambda config: KINDS[config.found_kind].provides | (_FLOAT32 if config.dtype == "float32" else frozenset()),
)
EMBEDDED = ("tiny", "tiny_gpt2", "tiny_roberta", "tiny_t5")
ON_THE_HUB = (
    *("gpt2_large", "gpt2_medium", "llama2_7b", "llama31_8b", "llama32_3b", "llama32_3b_instruct", "llama3_8b_instruct"),
    *("qwen25_15b", "qwen25_7b", "qwen2_15b_instruct", "roberta_base", "roberta_large", "t5_base"),
)
MODELS = Registry("model", dict.fromkeys((*EMBEDDED, "local", *ON_THE_HUB), _ENTRY))
