"""The sheets of the `evaluation` and `control` groups: what is measured, on how much, and at which strengths."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alignlab.errors import ConfigError


@dataclass
class EvaluationConfig:
    """`suites`: which, in order (the first gives the headline). `prompts`: texts sampled per strength. `pairs`: held-out
    pairs scored. `temperature` 0 = greedy."""

    name: str
    suites: list[str]
    prompts: int
    pairs: int
    max_new_tokens: int
    temperature: float
    top_p: float
    sampling_seed: int

    def check(self) -> None:
        """Raises ConfigError for numbers that cannot be sampled with."""
        if self.prompts < 2 or self.pairs < 2 or self.max_new_tokens < 1:
            raise ConfigError("evaluation.prompts and evaluation.pairs must be at least 2, max_new_tokens at least 1.")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"evaluation: temperature={self.temperature} must be >= 0 and top_p={self.top_p} in (0, 1].")


@dataclass
class ControlConfig:
    """`strengths`: where the dial is read; 0 is the backbone, 1 the trained model. `figure`: draw dial.png."""

    name: str
    strengths: list[float]
    figure: bool

    def check(self) -> None:
        """Raises ConfigError for an empty or non-finite grid."""
        if not self.strengths or not all(math.isfinite(strength) for strength in self.strengths):
            raise ConfigError(f"control.strengths={self.strengths} must be a list of finite numbers with at least one.")
        if len(set(self.strengths)) != len(self.strengths):
            raise ConfigError(f"control.strengths={self.strengths} names a strength twice.")
