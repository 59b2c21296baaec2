"""The config of the `evaluation` group: what is measured, and on how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from alignlab.errors import ConfigError
from alignlab.models.sampling import Sampling
from alignlab.registry import like, number, random_seed


@dataclass
class EvaluationConfig:
    """`suites`: which, in order (the first gives the headline). `prompts`: texts sampled per strength. `pairs`: held-out
    pairs scored. How texts are sampled, from `max_new_tokens` to `beams`: see `Sampling`."""

    name: str
    suites: list[str]
    prompts: Annotated[int, number(minimum=2)]
    pairs: Annotated[int, number(minimum=2)]
    max_new_tokens: Annotated[int, like(Sampling, "max_new_tokens")]
    temperature: Annotated[float, like(Sampling, "temperature")]
    top_p: Annotated[float, like(Sampling, "top_p")]
    top_k: Annotated[int, like(Sampling, "top_k")]
    min_p: Annotated[float, like(Sampling, "min_p")]
    repetition_penalty: Annotated[float, like(Sampling, "repetition_penalty")]
    no_repeat_ngram_size: Annotated[int, like(Sampling, "no_repeat_ngram_size")]
    stop: list[str]
    beams: Annotated[int, like(Sampling, "beams")]
    sampling_seed: Annotated[int, random_seed()]

    def sampling(self) -> Sampling:
        """How texts are sampled. Raises ConfigError for numbers that cannot be sampled with."""
        try:
            return Sampling(
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                no_repeat_ngram_size=self.no_repeat_ngram_size,
                stop=tuple(self.stop),
                beams=self.beams,
            )
        except ConfigError as error:
            raise ConfigError(f"evaluation.{error}") from error
