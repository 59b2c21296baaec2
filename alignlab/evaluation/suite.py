"""What a suite is: it measures a policy at one point, a strength or a class. Texts are sampled once per point, for all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from alignlab.data.classes import Classes
from alignlab.data.encode import Account, Limits, encode
from alignlab.data.source import Source, Split
from alignlab.evaluation.config import EvaluationConfig
from alignlab.evaluation.statistics import Measurement
from alignlab.models.policy import Policy
from alignlab.models.text import Codec
from alignlab.records import EncodedGroup, LabelSet, View

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class HeldOut:
    """Groups of the test split as ids, and the account of its rows."""

    groups: Sequence[EncodedGroup]
    account: Account


def held_out(split: Split, view: View, codec: Codec, limits: Limits) -> HeldOut:
    """Encodes a test split; part of the plan, so that bad rows are found before any training."""
    return HeldOut(*encode(split, view, codec.examples, limits))


@dataclass(frozen=True)
class EvaluationContext:
    """What suites work with: the policy, the data, held-out pairs (None where no suite asks for them), the texts sampled so
    far, by point. Where there are classes, those and the held-out items of each; where texts have labels, those that there are
    and the held-out texts."""

    policy: Policy
    source: Source
    held_out: HeldOut | None
    config: EvaluationConfig
    classes: Classes | None = None
    held_out_items: HeldOut | None = None
    labels: LabelSet | None = None
    held_out_labels: HeldOut | None = None
    _answers: dict[Point, tuple[Sequence[str], list[str]]] = field(default_factory=dict)

    def answers(self, point: Point) -> tuple[Sequence[str], list[str]]:
        """Prompts and the responses sampled at this point; the same random numbers at every point."""
        if point not in self._answers:
            config = self.config
            prompts = self._prompts()
            texts = self.policy.respond(
                prompts,
                strength=point.strength,
                control=point.mixture,
                sampling=config.sampling(),
                seed=config.sampling_seed,
            )
            self._answers[point] = (prompts, texts)
        return self._answers[point]

    def _prompts(self) -> list[str]:
        """The first prompts of the evaluation split that leave room for an answer; how many did not is logged."""
        room = self.policy.prompt_room(self.config.max_new_tokens)
        offered = self.source.prompts()
        lengths = [len(ids) for ids in self.policy.backbone.codec.prompts(offered)]
        fitting = [prompt for prompt, length in zip(offered, lengths, strict=True) if length <= room]
        if not self._answers and len(fitting) < len(offered):
            log.info("%d of %d evaluation prompts leave no room for an answer", len(offered) - len(fitting), len(offered))
        return fitting[: self.config.prompts]


class Suite(Protocol):
    """Some metrics. Built once per run, asked once per point."""

    def measure(self, point: Point) -> list[Measurement]:
        """The metrics at this point."""


@runtime_checkable
class SuiteAcross(Suite, Protocol):
    """A suite that also has something to say of all points together."""

    def across(self, points: Sequence[Point]) -> list[Measurement]:
        """Metrics that need more than one point."""
