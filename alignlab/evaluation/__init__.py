"""Evaluation: suites of metrics, read along the strengths of a control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignlab.evaluation.config import (
    EmbeddedFormConfig,
    EvaluationConfig,
    FormConfig,
    LoraFormConfig,
    PrefixFormConfig,
    StrengthConfig,
)
from alignlab.registry import Entry, Registry, capabilities


def _toy(context: Any) -> Any:
    from alignlab.evaluation.toy import Toy

    return Toy(context)


def _preference(context: Any) -> Any:
    from alignlab.evaluation.preference import PreferenceSuite

    return PreferenceSuite(context)


def _fluency(context: Any) -> Any:
    from alignlab.evaluation.fluency import Fluency

    return Fluency(context)


def _classes(context: Any) -> Any:
    from alignlab.evaluation.classes import BetweenClasses

    return BetweenClasses(context)


def _classification(context: Any) -> Any:
    from alignlab.evaluation.classification import Classification

    return Classification(context)


SUITES = Registry(
    "evaluation suite",
    {
        "toy": Entry(
            EvaluationConfig, _toy, requires=capabilities("oracle", "generation"), provides=capabilities("sampled texts")
        ),
        "preference": Entry(EvaluationConfig, _preference, requires=capabilities("pairs", "token likelihood")),
        "fluency": Entry(
            EvaluationConfig,
            _fluency,
            requires=capabilities("generation", "token likelihood"),
            provides=capabilities("sampled texts"),
        ),
        "classes": Entry(EvaluationConfig, _classes, requires=capabilities("classes", "token likelihood")),
        "classification": Entry(EvaluationConfig, _classification, requires=capabilities("label set")),
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


def _no_control(_config: StrengthConfig, *_: Any) -> None:
    """A dial chooses between no classes."""


def _control(config: FormConfig, *given: Any) -> Any:
    from alignlab.tuners.control.config import build_config

    return build_config(config, *given)


def _classed_by(config: FormConfig) -> frozenset[str]:
    return frozenset({"controls", config.classes.by})


_LEARNED = capabilities("classes", "learned control")
CONTROLS = Registry(
    "control",
    {
        **{name: Entry(StrengthConfig, _no_control) for name in ("trained", "dial", "grid")},
        "text": Entry(FormConfig, _control, requires=_classed_by, provides=capabilities("classes")),
        "prefixes": Entry(
            PrefixFormConfig, _control, requires=_classed_by, provides=capabilities("classes", "classes in words")
        ),
        "token": Entry(EmbeddedFormConfig, _control, requires=_classed_by, provides=_LEARNED),
        "soft_prompt": Entry(EmbeddedFormConfig, _control, requires=_classed_by, provides=_LEARNED),
        "lora": Entry(LoraFormConfig, _control, requires=_classed_by, provides=_LEARNED),
    },
)
EVALUATIONS = Registry("evaluation", {name: Entry(EvaluationConfig, _same) for name in ("off", "quick", "full")})
