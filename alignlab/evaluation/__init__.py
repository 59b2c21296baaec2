"""Evaluation: suites of metrics, the controls that are evaluated, and the points at which a policy is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.evaluation.config import EvaluationConfig
from alignlab.registry import Entry, Registry, capabilities, deferred

if TYPE_CHECKING:
    from alignlab.models.policy import Policy


@dataclass(frozen=True)
class SuiteEntry(Entry):
    """A suite. `metrics`: the names of what it measures; the first stands for a run. `shares`: those of them that lie between
    0 and 1. `look`: reads what its settings name, before anything is trained; raises ConfigError and DataError."""

    metrics: tuple[str, ...] = ()
    shares: frozenset[str] = frozenset()
    look: Callable[[EvaluationConfig], object] | None = None


OWN_SETTINGS = "settings of its own"
"""What a suite requires that measures only where its section of the config names something."""


_SUITES: Mapping[str, SuiteEntry] = {
    "toy": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.suites.Toy"),
        requires=capabilities("oracle", "generation"),
        provides=capabilities("sampled texts"),
        metrics=("reward", "capability", "consistency", "obedience"),
        shares=frozenset({"capability", "consistency", "obedience"}),
    ),
    "preference": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.suites.PreferenceSuite"),
        requires=capabilities("pairs", "token likelihood"),
        metrics=("accuracy", "accuracy_per_token", "reward_accuracy", "reward_margin"),
        shares=frozenset({"accuracy", "accuracy_per_token", "reward_accuracy"}),
    ),
    "fluency": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.suites.Fluency"),
        requires=capabilities("generation", "token likelihood"),
        provides=capabilities("sampled texts"),
        metrics=("perplexity", "distinct_2", "repetition_4", "words"),
        shares=frozenset({"distinct_2", "repetition_4"}),
    ),
    "classes": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.classes.BetweenClasses"),
        requires=capabilities("classes", "token likelihood"),
        metrics=(
            "class_accuracy",
            "pair_accuracy",
            "likelihood_separation",
            "nats_per_token",
            "bits_per_byte",
            "gap",
            "separation",
        ),
        shares=frozenset({"class_accuracy", "pair_accuracy"}),
    ),
    "classification": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.suites.Classification"),
        requires=capabilities("label set"),
        metrics=("accuracy", "nats", "squared_error", "matthews", "f1", "pearson", "spearman"),
        shares=frozenset({"accuracy", "f1"}),
    ),
    "reward_pairs": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.suites.RewardPairs"),
        requires=capabilities("pairs", "response scores"),
        metrics=("accuracy", "margin", "reward"),
        shares=frozenset({"accuracy"}),
    ),
    "nlg": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.nlg.Nlg"),
        requires=capabilities("references", "generation"),
        provides=capabilities("sampled texts"),
        metrics=("bleu", "nist", "meteor", "rouge_l", "cider"),
    ),
    "text": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.text.TextSuite"),
        requires=capabilities("continuation", where=lambda config: config.text.path, otherwise=OWN_SETTINGS),
        metrics=("perplexity", "nats_per_token", "bits_per_byte"),
        look=deferred(f"{__name__}.text.read_text"),
    ),
    "lm_eval": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.harness.LmEval"),
        requires=capabilities("continuation", where=lambda config: config.lm_eval.tasks, otherwise=OWN_SETTINGS),
        metrics=("average",),
        shares=frozenset({"average"}),
        look=deferred(f"{__name__}.harness.look"),
    ),
    "lexicon": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.lexicon.Lexicon"),
        requires=capabilities("generation", where=lambda config: config.lexicon.path, otherwise=OWN_SETTINGS),
        provides=capabilities("sampled texts"),
        metrics=("reward", "found"),
        shares=frozenset({"found"}),
        look=deferred(f"{__name__}.lexicon.word_scores"),
    ),
    "reward_model": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.reward_model.RewardModel"),
        requires=capabilities("generation", where=lambda config: config.reward_model.path, otherwise=OWN_SETTINGS),
        provides=capabilities("sampled texts"),
        metrics=("reward", "win_rate"),
        shares=frozenset({"win_rate"}),
        look=deferred(f"{__name__}.reward_model.look"),
    ),
    "judge": SuiteEntry(
        EvaluationConfig,
        deferred(f"{__name__}.judge.Judge"),
        requires=capabilities("generation", where=lambda config: config.judge.model, otherwise=OWN_SETTINGS),
        provides=lambda config: frozenset({"verdicts"} if config.judge.questions else {"verdicts", "sampled texts"}),
        metrics=("win_rate", "mark", "length_controlled", "turn1", "turn2", "ties", "first", "unread"),
        shares=frozenset({"win_rate", "length_controlled", "ties", "first", "unread"}),
        look=deferred(f"{__name__}.judge.look"),
    ),
}
SUITES = Registry("evaluation suite", _SUITES)
METRICS: Mapping[str, tuple[str, ...]] = {name: entry.metrics for name, entry in _SUITES.items()}


def is_share(suite: str, metric: str) -> bool:
    """Whether a metric lies between 0 and 1; `source/metric` is that of one source."""
    return suite in _SUITES and metric.rpartition("/")[2] in _SUITES[suite].shares


def look(suites: Iterable[str], config: EvaluationConfig) -> None:
    """Reads what the settings of these suites name. Raises ConfigError and DataError for what cannot be read."""
    for suite in suites:
        if (look_at := _SUITES[suite].look) is not None:
            look_at(config)


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
