"""The configs of the `evaluation` and `control` groups: what is measured, on how much, at which strengths or classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alignlab.data.config import ClassesConfig
from alignlab.errors import ConfigError
from alignlab.models.sampling import Sampling
from alignlab.registry import unknown
from alignlab.tuners.config import STARTS_OF_PROMPTS, check_lora

PLACES = ("after_bos", "before_bos")


@dataclass
class EvaluationConfig:
    """`suites`: which, in order (the first gives the headline). `prompts`: texts sampled per strength. `pairs`: held-out
    pairs scored. How texts are sampled, from `max_new_tokens` to `beams`: see `Sampling`."""

    name: str
    suites: list[str]
    prompts: int
    pairs: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    stop: list[str]
    beams: int
    sampling_seed: int

    def check(self) -> None:
        """Raises ConfigError for numbers that cannot be sampled with."""
        if self.prompts < 2 or self.pairs < 2:
            raise ConfigError("evaluation.prompts and evaluation.pairs must be at least 2.")
        try:
            self.sampling()
        except ConfigError as error:
            raise ConfigError(f"evaluation.{error}") from error

    def sampling(self) -> Sampling:
        """How texts are sampled. Raises ConfigError for numbers that cannot be sampled with."""
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


@dataclass
class StrengthConfig:
    """`strengths`: where the dial is read; 0 is the backbone, 1 the trained model. `figure`: draw dial.png."""

    name: str
    strengths: list[float]
    figure: bool

    def check(self) -> None:
        """Raises ConfigError for an empty or non-finite grid."""
        if not self.strengths:
            raise ConfigError("control.strengths is empty; give at least one finite number.")
        _check_strengths(self.strengths)


@dataclass
class FormConfig:
    """A control that chooses between classes. `phrase`: a text with {class}, per class; `phrases`: other texts for some
    classes. `place` of what stands in the text: after_bos | before_bos. `rate`: AdamW learning rate of the control alone;
    `joint_rate`: beside the model. Evaluated are all classes, none, and for two classes mixtures at `strengths`."""

    name: str
    classes: ClassesConfig
    phrase: str
    phrases: dict[str, str]
    place: str
    rate: float
    joint_rate: float
    strengths: list[float]
    figure: bool

    def check(self) -> None:
        """Raises ConfigError for classes, phrases, rates or strengths that cannot be used."""
        self.classes.check()
        _check_strengths(self.strengths)
        if self.phrase.count("{class}") != 1:
            raise ConfigError(f"control.phrase={self.phrase!r} must hold {{class}} exactly once.")
        if self.place not in PLACES:
            raise ConfigError(f"control.place={self.place!r} is not known; choose after_bos or before_bos.")
        for key in ("rate", "joint_rate"):
            if not 0 < getattr(self, key) < 10:
                raise ConfigError(f"control.{key}={getattr(self, key)} must lie between 0 and 10.")

    @property
    def form(self) -> str:
        """How a class is told to the model."""
        return self.name

    def phrase_of(self, name: str) -> str:
        """The text that stands for a class."""
        return self.phrases.get(name, self.phrase.replace("{class}", name))


@dataclass
class PrefixFormConfig(FormConfig):
    """Texts that ask for good and for bad answers, those of the data: `phrases` has one for every class."""

    @property
    def form(self) -> str:
        """A text."""
        return "text"


@dataclass
class EmbeddedFormConfig(FormConfig):
    """Vectors in the text. `length`: how many per class. `init`: text (embeddings of the phrase, repeated or cut) | vocabulary
    (of drawn tokens) | random. `placeholders`: an unused id per class, null = found."""

    length: int
    init: str
    placeholders: list[int] | None

    def check(self) -> None:
        """Raises ConfigError for a length or a start that does not exist, and for an id given twice."""
        super().check()
        if self.length < 1:
            raise ConfigError(f"control.length={self.length} must be at least 1.")
        if self.init not in STARTS_OF_PROMPTS:
            raise ConfigError(unknown("control.init", self.init, STARTS_OF_PROMPTS))
        if len(set(self.placeholders or ())) != len(self.placeholders or ()):
            raise ConfigError(f"control.placeholders={self.placeholders} names an id twice; each class needs its own.")


@dataclass
class LoraFormConfig(FormConfig):
    """A LoRA per class, scaled by `alpha` / `rank`. `targets`: names of linear maps; empty means queries and values."""

    rank: int
    alpha: float
    dropout: float
    targets: list[str]

    def check(self) -> None:
        """Raises ConfigError for a rank or a dropout that cannot be built."""
        super().check()
        check_lora("control", self.rank, self.alpha, self.dropout)


def _check_strengths(strengths: list[float]) -> None:
    if not all(math.isfinite(strength) for strength in strengths):
        raise ConfigError(f"control.strengths={strengths} must be finite numbers.")
    if len(set(strengths)) != len(strengths):
        raise ConfigError(f"control.strengths={strengths} names a strength twice.")
