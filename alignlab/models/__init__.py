"""Backbones and policies. The table of sources stands here; torch is imported when one is loaded."""

from __future__ import annotations

from alignlab.models.config import ModelConfig
from alignlab.models.kinds import KINDS
from alignlab.records import LabelSet
from alignlab.registry import Entry, Registry


def _load(config: ModelConfig, *, start: str, seed: int, device: str, labels: LabelSet | None = None) -> object:
    from alignlab.models.backbone import load

    return load(config, start=start, seed=seed, device=device, labels=labels)


def _requires(config: ModelConfig) -> frozenset[str]:
    return KINDS[config.found_kind].requires


def _provides(config: ModelConfig) -> frozenset[str]:
    weights = {"float32 weights"} if config.dtype == "float32" else set()
    return KINDS[config.found_kind].provides | weights


_ENTRY = Entry(ModelConfig, _load, requires=_requires, provides=_provides)
EMBEDDED = ("tiny", "tiny_gpt2", "tiny_roberta", "tiny_t5")
ON_THE_HUB = ("gpt2_medium", "llama2_7b", "llama31_8b", "llama32_3b", "qwen25_15b", "qwen25_7b")
MODELS = Registry(
    "model",
    dict.fromkeys((*EMBEDDED, "local", *ON_THE_HUB), _ENTRY),
)
