"""Held-out pairs: does the model prefer what people preferred? By log-probability, and by implicit reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.evaluation.statistics import Measurement, bootstrap, share
from alignlab.evaluation.suite import EvaluationContext, Point
from alignlab.models.scoring import scored

ROWS_PER_PASS = 32
TIE_NATS = 1e-4
"""Margins closer than rounding between batch shapes are ties: they count one half."""


class PreferenceSuite:
    """Accuracy with ties as one half: of log p(chosen) > log p(rejected), and of the same relative to `off`, which is the
    tuned backbone where a stage moved it."""

    def __init__(self, context: EvaluationContext) -> None:
        if context.held_out is None:
            raise ConfigError(f"evaluation suite preference needs pairs; data={context.source.name} has none.")
        self._policy = context.policy
        self._groups = context.held_out.groups[: context.config.pairs]
        self._base_N: Tensor | None = None

    def measure(self, point: Point) -> list[Measurement]:
        """Accuracy by log-probability, by log-probability per token, by implicit reward, and the mean reward margin (nats); of
        several sources both accuracies of each too, as source/accuracy."""
        if self._base_N is None:
            with self._policy.off():
                self._base_N = self._margins()[0]
        with point.set(self._policy):
            margin_N, per_token_N = self._margins()
        reward_N = margin_N - self._base_N
        tasks = [group.task for group in self._groups]
        return [
            share("accuracy", _wins(margin_N)),
            share("accuracy_per_token", _wins(per_token_N)),
            share("reward_accuracy", _wins(reward_N)),
            bootstrap("reward_margin", reward_N.tolist()),
            *_of_each("accuracy", _wins(margin_N), tasks),
            *_of_each("reward_accuracy", _wins(reward_N), tasks),
        ]

    @torch.inference_mode()
    def _margins(self) -> tuple[Tensor, Tensor]:
        """log p(chosen) - log p(rejected) of each pair, summed and per token, in the order of the groups."""
        total_NM, mean_NM = scored(self._policy, self._groups, ROWS_PER_PASS)
        return total_NM[:, 0] - total_NM[:, 1], mean_NM[:, 0] - mean_NM[:, 1]


def _of_each(metric: str, values: Sequence[float], tasks: Sequence[str | None]) -> list[Measurement]:
    """A share for each task, where there are several sources."""
    named = dict.fromkeys(task for task in tasks if task is not None)
    return [
        share(f"{name}/{metric}", [value for value, task in zip(values, tasks, strict=True) if task == name]) for name in named
    ]


def _wins(margin_N: Tensor) -> list[float]:
    return torch.where(margin_N.abs() <= TIE_NATS, 0.5, (margin_N > 0).float()).tolist()
