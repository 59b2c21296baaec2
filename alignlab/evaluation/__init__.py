"""Evaluation: suites of metrics, read along the strengths of a control."""

from __future__ import annotations

from typing import Any

from alignlab.evaluation.config import ControlConfig, EvaluationConfig
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


SUITES = Registry(
    "evaluation suite",
    {
        "toy": Entry(EvaluationConfig, _toy, needs=words("oracle")),
        "preference": Entry(EvaluationConfig, _preference, needs=words("pairs")),
        "fluency": Entry(EvaluationConfig, _fluency),
    },
)


def _same(config: Any) -> Any:
    return config


CONTROLS = Registry("control", {name: Entry(ControlConfig, _same) for name in ("trained", "dial", "grid")})
EVALUATIONS = Registry("evaluation", {name: Entry(EvaluationConfig, _same) for name in ("off", "quick", "full")})
