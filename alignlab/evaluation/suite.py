"""What a suite is: it measures a policy at one strength. Texts are sampled once per strength and shared by all suites."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from alignlab.data.encode import Account, Limits, encode
from alignlab.data.source import Source
from alignlab.data.views import pair
from alignlab.evaluation.config import EvaluationConfig
from alignlab.evaluation.statistics import Measurement
from alignlab.models.decode import Sampling
from alignlab.models.policy import Policy
from alignlab.models.text import Codec
from alignlab.records import EncodedGroup

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """The pairs of the test split as ids, and the account of its rows."""

    groups: Sequence[EncodedGroup]
    account: Account


def held_out_pairs(source: Source, codec: Codec, limits: Limits) -> HeldOut:
    """Reads and encodes the test split; part of the plan, so that bad rows are found before any training."""
    return HeldOut(*encode(source.split("test"), pair, codec.examples, limits))


@dataclass(frozen=True)
class Bench:
    """What suites work with: the policy, the data, held-out pairs (None where no suite asks for them), and the texts sampled
    so far, by strength."""

    policy: Policy
    source: Source
    held_out: HeldOut | None
    config: EvaluationConfig
    _answers: dict[float, tuple[Sequence[str], list[str]]] = field(default_factory=dict)

    def answers(self, strength: float) -> tuple[Sequence[str], list[str]]:
        """Prompts and the responses sampled at this strength; the same random numbers at every strength."""
        if strength not in self._answers:
            config = self.config
            prompts = self._prompts()
            sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p)
            texts = self.policy.respond(prompts, strength=strength, sampling=sampling, seed=config.sampling_seed)
            self._answers[strength] = (prompts, texts)
        return self._answers[strength]

    def _prompts(self) -> list[str]:
        """The first prompts of the evaluation split that leave room for an answer; how many did not is logged."""
        room = self.policy.backbone.context - self.config.max_new_tokens
        offered = self.source.prompts()
        lengths = [len(ids) for ids in self.policy.backbone.codec.prompts(offered)]
        fitting = [prompt for prompt, length in zip(offered, lengths, strict=True) if length <= room]
        if not self._answers and len(fitting) < len(offered):
            log.info("%d of %d evaluation prompts leave no room for an answer", len(offered) - len(fitting), len(offered))
        return fitting[: self.config.prompts]


class Suite(Protocol):
    """Some metrics. Built once per run, asked once per strength."""

    def measure(self, strength: float) -> list[Measurement]:
        """The metrics at this strength."""
