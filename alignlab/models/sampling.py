"""How answers are chosen, token by token, and where they stop; imports no torch, so that configs can be checked with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from alignlab.errors import ConfigError
from alignlab.registry import check_fields, number

COLDEST = 1e-3
"""The lowest temperature above 0; what is drawn at it is the likeliest token already."""


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

    max_new_tokens: Annotated[int, number(minimum=1, smoke=16)]
    temperature: Annotated[float, number(minimum=0)]
    top_p: Annotated[float, number(above=0, maximum=1)]
    top_k: Annotated[int, number(minimum=0)] = 0
    min_p: Annotated[float, number(minimum=0, below=1)] = 0.0
    repetition_penalty: Annotated[float, number(minimum=0.01, maximum=100)] = 1.0
    no_repeat_ngram_size: Annotated[int, number(minimum=0)] = 0
    stop: tuple[str, ...] = ()
    beams: Annotated[int, number(minimum=1, maximum=1000)] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if 0 < self.temperature < COLDEST:
            raise ConfigError(f"temperature={self.temperature:g} must be 0, or at least {COLDEST}: logits are divided by it.")
        if self.no_repeat_ngram_size == 1:
            raise ConfigError("no_repeat_ngram_size=1 must be 0, or at least 2.")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop={self.stop!r} must be a list of texts, none of them empty.")
        if self.beams > 1 and self.temperature > 0:
            raise ConfigError(f"beams={self.beams} draw nothing, so set temperature=0 beside them (now {self.temperature:g}).")
