"""How answers are chosen, token by token, and where they stop; imports no torch, so that configs can be checked with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alignlab.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and where an answer stops.

    `temperature` 0 takes the likeliest token; above it, one is drawn from what `top_k` (0: all), then `min_p` (those with at
    least this share of the likeliest one's probability), then `top_p` (the smallest set that holds so much of what is left)
    have kept. `repetition_penalty` (1: none; CTRL, arXiv 1909.05858) and `no_repeat_ngram_size` (0: off) look at the prompt
    too, except in an encoder-decoder model, whose prompt is another text. An answer is cut in front of the first of `stop`.
    `beams` above 1 is beam search, which draws nothing.

    Raises ConfigError for a number outside its range, and for an empty text to stop at.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    stop: tuple[str, ...] = ()
    beams: int = 1

    def __post_init__(self) -> None:
        for key, fits, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "a finite number, at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("min_p", 0 <= self.min_p < 1, "at least 0 and below 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a finite number above 0"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0 and self.no_repeat_ngram_size != 1, "0, or at least 2"),
            ("beams", self.beams >= 1, "at least 1"),
        ):
            if not fits:
                raise ConfigError(f"{key}={getattr(self, key)} must be {allowed}.")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop={self.stop!r} must be a list of texts, none of them empty.")
        if self.beams > 1 and self.temperature > 0:
            raise ConfigError(f"beams={self.beams} draw nothing, so set temperature=0 beside them (now {self.temperature:g}).")
