"""Evaluation: suites of metrics, read along the strengths of a control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignlab.evaluation.config import (
    DialConfig,
    EmbeddedFormConfig,
    EvaluationConfig,
    FormConfig,
    LoraFormConfig,
    PrefixFormConfig,
)
from alignlab.registry import Entry, Registry, words


def _toy(bench: Any) -> Any:
    from alignlab.evaluation.toy import Toy

    return Toy(bench)


def _preference(bench: Any) -> Any:
    from alignlab.evaluation.preference import Preference

    return Preference(bench)


def _fluency(bench: Any) -> Any:
    from alignlab.evaluation.fluency import Fluency

    return Fluency(bench)


def _classes(bench: Any) -> Any:
    from alignlab.evaluation.classes import BetweenClasses

    return BetweenClasses(bench)


def _classification(bench: Any) -> Any:
    from alignlab.evaluation.classification import Classification

    return Classification(bench)


SUITES = Registry(
    "evaluation suite",
    {
        "toy": Entry(EvaluationConfig, _toy, needs=words("oracle", "generation"), offers=words("sampled texts")),
        "preference": Entry(EvaluationConfig, _preference, needs=words("pairs", "token likelihood")),
        "fluency": Entry(
            EvaluationConfig, _fluency, needs=words("generation", "token likelihood"), offers=words("sampled texts")
        ),
        "classes": Entry(EvaluationConfig, _classes, needs=words("classes", "token likelihood")),
        "classification": Entry(EvaluationConfig, _classification, needs=words("label set")),
    },
)

METRICS: Mapping[str, tuple[str, ...]] = {
    "toy": ("reward", "capability", "consistency", "obedience"),
    "preference": ("accuracy", "accuracy_per_token", "reward_accuracy", "reward_margin"),
    "fluency": ("perplexity", "distinct_2", "repetition_4", "words"),
    "classes": (
        "nats_per_token",
        "gap",
        "separation",
        "class_accuracy",
        "pair_accuracy",
        "likelihood_separation",
    ),
    "classification": ("accuracy", "nats", "squared_error"),
}
"""The numbers of each suite."""


def _same(config: Any) -> Any:
    return config


def _no_control(_config: DialConfig, *_: Any) -> None:
    """A dial chooses between no classes."""


def _control(config: FormConfig, *given: Any) -> Any:
    from alignlab.tuners.control.settle import settle

    return settle(config, *given)


def _classed_by(config: FormConfig) -> frozenset[str]:
    return frozenset({"controls", config.classes.by})


_LEARNED = words("classes", "learned control")
CONTROLS = Registry(
    "control",
    {
        **{name: Entry(DialConfig, _no_control) for name in ("trained", "dial", "grid")},
        "text": Entry(FormConfig, _control, needs=_classed_by, offers=words("classes")),
        "prefixes": Entry(PrefixFormConfig, _control, needs=_classed_by, offers=words("classes", "classes in words")),
        "token": Entry(EmbeddedFormConfig, _control, needs=_classed_by, offers=_LEARNED),
        "soft_prompt": Entry(EmbeddedFormConfig, _control, needs=_classed_by, offers=_LEARNED),
        "lora": Entry(LoraFormConfig, _control, needs=_classed_by, offers=_LEARNED),
    },
)
EVALUATIONS = Registry("evaluation", {name: Entry(EvaluationConfig, _same) for name in ("off", "quick", "full")})
