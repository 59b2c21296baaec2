"""Evaluation: suites of metrics, the controls that are evaluated, and the points at which a policy is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError
from alignlab.evaluation.config import EvaluationConfig
from alignlab.records import NO_CLASS
from alignlab.registry import Entry, Registry, capabilities, deferred

if TYPE_CHECKING:
    from alignlab.models.policy import Policy
    from alignlab.tuners.config import FormConfig, StrengthConfig


@dataclass(frozen=True)
class SuiteEntry(Entry):
    """A suite. `metrics`: the names of what it measures; the first stands for a run."""

    metrics: tuple[str, ...] = ()


def _at(place: str) -> Callable[..., Any]:
    """What builds the class at module.Name of this package, imported when it is built."""
    return deferred(f"{__name__}.{place}")


_SUITES: Mapping[str, SuiteEntry] = {
    "toy": SuiteEntry(
        EvaluationConfig,
        _at("suites.Toy"),
        requires=capabilities("oracle", "generation"),
        provides=capabilities("sampled texts"),
        metrics=("reward", "capability", "consistency", "obedience"),
    ),
    "preference": SuiteEntry(
        EvaluationConfig,
        _at("suites.PreferenceSuite"),
        requires=capabilities("pairs", "token likelihood"),
        metrics=("accuracy", "accuracy_per_token", "reward_accuracy", "reward_margin"),
    ),
    "fluency": SuiteEntry(
        EvaluationConfig,
        _at("suites.Fluency"),
        requires=capabilities("generation", "token likelihood"),
        provides=capabilities("sampled texts"),
        metrics=("perplexity", "distinct_2", "repetition_4", "words"),
    ),
    "classes": SuiteEntry(
        EvaluationConfig,
        _at("classes.BetweenClasses"),
        requires=capabilities("classes", "token likelihood"),
        metrics=("class_accuracy", "pair_accuracy", "likelihood_separation", "nats_per_token", "gap", "separation"),
    ),
    "classification": SuiteEntry(
        EvaluationConfig,
        _at("suites.Classification"),
        requires=capabilities("label set"),
        metrics=("accuracy", "nats", "squared_error", "matthews", "f1", "pearson", "spearman"),
    ),
    "reward_pairs": SuiteEntry(
        EvaluationConfig,
        _at("suites.RewardPairs"),
        requires=capabilities("pairs", "response scores"),
        metrics=("accuracy", "margin", "reward"),
    ),
    "nlg": SuiteEntry(
        EvaluationConfig,
        _at("nlg.Nlg"),
        requires=capabilities("references", "generation"),
        provides=capabilities("sampled texts"),
        metrics=("bleu", "nist", "meteor", "rouge_l", "cider"),
    ),
}
SUITES = Registry("evaluation suite", _SUITES)
METRICS: Mapping[str, tuple[str, ...]] = {name: entry.metrics for name, entry in _SUITES.items()}


EVALUATIONS = Registry("evaluation", dict.fromkeys(("off", "quick", "full"), Entry(EvaluationConfig, lambda config: config)))


@dataclass(frozen=True)
class Point:
    """Where a policy is measured. `control`: the dial's name, or the class's; `mixture`: the class, None where it is the
    strength that is asked for."""

    strength: float
    control: str
    mixture: str | None = None

    def set(self, policy: Policy) -> AbstractContextManager[None]:
        """Inside, the policy is at this point."""
        return policy.at(self.strength) if self.mixture is None else policy.under(self.mixture)


def points(control: StrengthConfig | FormConfig, classes: Sequence[str] | None) -> list[Point]:
    """Where a policy is measured. Raises ConfigError for strengths between more than two classes."""
    if classes is None:
        return [Point(strength, control.name) for strength in control.strengths]
    if control.strengths and len(classes) != 2:
        raise ConfigError(f"control.strengths mix two classes, and there are {', '.join(classes)}; set control.strengths=[].")
    alone = [Point(1.0, name, name) for name in (*classes, NO_CLASS)]
    return alone + [Point(strength, "/".join(classes)) for strength in control.strengths]
