"""Whether the parts of a run fit each other: what each needs must be offered by another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignlab.errors import ConfigError
from alignlab.evaluation import METRICS, SUITES
from alignlab.evaluation.config import EvaluationConfig
from alignlab.registry import Entry, unknown
from alignlab.training.config import TrainerConfig

NAMED = ("method", "data", "tuner", "model", "control")
"""The groups that a misfit names."""

WHO_PROVIDES: Mapping[str, str] = {
    "pairs": "try data=toy, hh_rlhf, ultrafeedback or summaries",
    "chosen": "try data=toy, hh_rlhf, ultrafeedback or summaries",
    "labels": "set control.classes.by to what the data has",
    "scores": "set control.classes.by to what the data has",
    "attributes": "set control.classes.by to what the data has",
    "classes": "take control=text, token, soft_prompt or lora",
    "controls": "take tuner=control",
    "labelled training": "take method=meet or coh, which learn classes",
    "learned control": "a phrase has nothing to learn by itself, so take control=token, soft_prompt or lora, or method=coh",
    "classes in words": "HIR is decoded with its prefix, so take tuner=control control=prefixes",
    "blocks in place": "take tuner=lora_lower, or another that neither adds blocks nor chooses between classes",
    "label set": "try data=toy_classes or text_classification",
    "token likelihood": "a classifier gives texts no likelihood, so take model.kind=causal or seq2seq",
    "hidden states": "they are read of causal models, so take model.kind=causal",
    "text in front of prompts": "a control stands in front of what a causal model reads, so take model.kind=causal",
    "corpus": "only data=toy has one",
    "every weight": "take tuner=full",
    "training": "give tuner.aligned=FOLDER, or for the backbone alone tuner=lora control.strengths=[0.0]",
    "no training": "tuner.aligned is left as it is, so take method=evaluate",
    "float32 weights": "set model.dtype=float32, since small steps round away in half precision where a tuner is"
    " some of the backbone's own weights",
}
"""What to do about a word that is needed and not offered."""


def check_fit(chosen: Mapping[str, tuple[Entry, Any]]) -> frozenset[str]:
    """All words that the choices of a run offer. Raises ConfigError for a need that none of them meets."""
    offered = frozenset[str]().union(*(entry.provides(part) for entry, part in chosen.values()))
    for group, (entry, part) in chosen.items():
        missing = entry.requires(part) - offered
        if missing:
            others = ", ".join(f"{other}={chosen[other][1].name}" for other in NAMED if other != group)
            advice = "; ".join(dict.fromkeys(WHO_PROVIDES.get(word, f"nothing offers {word!r}") for word in sorted(missing)))
            raise ConfigError(
                f"{group}={part.name} needs {' and '.join(sorted(missing))}, which none of {others} offers; {advice}."
            )
    return offered


def fitting_suites(evaluation: EvaluationConfig, offered: frozenset[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The suites that a run can serve, and for the others what is missing."""
    missing = {name: sorted(SUITES[name].requires(evaluation) - offered) for name in evaluation.suites}
    left_out = {name: f"needs {' and '.join(words)}, which this run does not have" for name, words in missing.items() if words}
    return tuple(name for name in evaluation.suites if name not in left_out), left_out


def check_validation(trainer: TrainerConfig, evaluation: EvaluationConfig, offered: frozenset[str]) -> None:
    """Raises ConfigError for a suite that the run cannot serve while it trains, and for a metric that is not the suite's."""
    wanted = trainer.validation
    if wanted is None:
        return
    missing = sorted(SUITES[wanted.suite].requires(evaluation) - offered)
    if missing:
        raise ConfigError(
            f"trainer.validation.suite={wanted.suite} needs {' and '.join(missing)}, which this run does not have; take another"
            f" of {', '.join(SUITES)}."
        )
    if wanted.metric not in METRICS[wanted.suite]:
        raise ConfigError(unknown(f"trainer.validation.metric of suite {wanted.suite}", wanted.metric, METRICS[wanted.suite]))
    if trainer.extra.get("fsdp"):
        raise ConfigError("trainer.validation measures the whole model, and trainer.extra.fsdp spreads it; set one to null.")
