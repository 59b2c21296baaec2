"""Data sets. Each source reads its own format and yields records."""

from __future__ import annotations

from alignlab.data import local, mixture, published, questions, tasks
from alignlab.data.config import (
    E2eConfig,
    FramedConfig,
    GlueConfig,
    HhConfig,
    JsonlConfig,
    QuestionsConfig,
    SummariesConfig,
    TextClassificationConfig,
    TextsConfig,
    ToyClassesConfig,
    ToyConfig,
)
from alignlab.data.toy import world
from alignlab.registry import Entry, Registry, capabilities

_pairs = capabilities("pairs", "chosen")
_toy = capabilities("pairs", "chosen", "corpus", "oracle", "scores", "attributes")
_labelled = capabilities("chosen", "label set")

SOURCES = Registry(
    "data",
    {
        "toy": Entry(ToyConfig, world.toy, provides=_toy),
        "toy_classes": Entry(ToyClassesConfig, world.toy_classes, provides=_labelled),
        "text_classification": Entry(TextClassificationConfig, local.text_classification, provides=_labelled),
        "glue": Entry(GlueConfig, tasks.glue, provides=_labelled),
        "glue_asked": Entry(GlueConfig, tasks.glue, provides=_labelled),
        "super_glue": Entry(QuestionsConfig, questions.questions, provides=questions.offers),
        "squad": Entry(QuestionsConfig, questions.questions, provides=questions.offers),
        "e2e_nlg": Entry(E2eConfig, tasks.e2e_nlg, provides=capabilities("chosen", "references")),
        "hh_rlhf": Entry(HhConfig, published.hh_rlhf, provides=_pairs),
        "ultrafeedback": Entry(FramedConfig, published.ultrafeedback, provides=_pairs),
        "ultrafeedback_cleaned": Entry(FramedConfig, published.ultrafeedback, provides=_pairs),
        "summaries": Entry(SummariesConfig, published.summaries, provides=_pairs),
        "texts": Entry(TextsConfig, local.texts, provides=capabilities("corpus")),
        "jsonl": Entry(JsonlConfig, local.jsonl, provides=local.offers),
        "mixture": Entry(mixture.MixtureConfig, mixture.build, provides=mixture.offers),
    },
)
