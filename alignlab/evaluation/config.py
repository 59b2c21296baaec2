"""The config of the `evaluation` group: what is measured, and on how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from alignlab.errors import ConfigError
from alignlab.files import content_keys
from alignlab.models.sampling import Sampling
from alignlab.registry import like, number, one_of, path, random_seed, text

SIDES = ("strength0", "chosen")
"""What answers are compared with that no file holds: the backbone's, and those of the data."""

WATCHED: Mapping[str, int] = {
    "toy/capability": 1,
    "lm_eval/average": 1,
    "text/perplexity": -1,
    "text/bits_per_byte": -1,
    "classification/accuracy": 1,
    "fluency/perplexity": -1,
}
"""Metrics that say what became of a backbone, the first that is measured counts; 1: higher is better, -1: lower."""


@dataclass
class SafeRangeConfig:
    """By what a strength is seen to hold. `metric`: SUITE/METRIC, null = the first of these that is measured; `tolerance`: by
    how much it may be worse than at strength 0, as a share of its value there, with the end of its 95 % interval."""

    metric: Annotated[str | None, one_of(*WATCHED)]
    tolerance: Annotated[float, number(minimum=0, maximum=1)]


@dataclass
class HarnessConfig:
    """What suite lm_eval measures. `tasks`: names of the harness's tasks and groups, [] = none; `include`: a folder of further
    task files. `shots`: examples in front of each question, `limit`: questions of each task; null = as the task says, and all.
    `chat`: whether the tokenizer's chat template is written around it, with each example as a turn. `tokens`: of one pass, at
    most, padding included."""

    tasks: Annotated[list[str], text(filled=True, unique=True)]
    include: Annotated[str | None, path()]
    shots: Annotated[int | None, number(minimum=0)]
    limit: Annotated[int | None, number(minimum=1, smoke=4, null_is_all=True)]
    chat: bool
    tokens: Annotated[int, number(minimum=1)]

    def check(self, where: str) -> None:
        """Raises ConfigError for tasks without the harness."""
        if self.tasks:
            _installed(f"{where}.tasks", "lm_eval", "lm-evaluation-harness", "lm_eval")


@dataclass
class TextConfig:
    """The file that suite text reads, null = none. `lines`: at most so many of its lines, null = all. `window`: tokens
    that are read together, null = as many as the model has room for. `stride`: of a window behind the first, so many tokens are
    predicted, null = all but one; the others are only read."""

    path: Annotated[str | None, path()]
    lines: Annotated[int | None, number(minimum=1, smoke=32, null_is_all=True)]
    window: Annotated[int | None, number(minimum=2)]
    stride: Annotated[int | None, number(minimum=1)]


@dataclass
class LexiconConfig:
    """The file whose lines `word<tab>score` suite lexicon reads, null = none."""

    path: Annotated[str | None, path()]


@dataclass
class RewardModelConfig:
    """The reward model of suite reward_model: a folder or a name on the hub, null = none. `revision`: of the hub. `template`:
    chat (its tokenizer's own), pair (prompt and answer as two texts) or a text with one {prompt} and one {answer}. `against`:
    what answers are compared with: strength0 (the backbone's), chosen (those of the data) or null. `batch`: texts of a pass."""

    path: Annotated[str | None, path()]
    revision: str | None
    template: Annotated[str, text(filled=True)]
    against: Annotated[str | None, one_of(*SIDES)]
    batch: Annotated[int, number(minimum=1)]

    def check(self, where: str) -> None:
        """Raises ConfigError for a template without its two places."""
        if self.template in ("chat", "pair"):
            return
        if not all(self.template.count(f"{{{key}}}") == 1 for key in ("prompt", "answer")):
            raise ConfigError(
                f"{where}.template={self.template!r} must be chat, pair, or hold {{prompt}} and {{answer}} once each."
            )


@dataclass
class JudgeConfig:
    """Who judges answers, and how. `model`: its name on the server, null = no judge; `base_url`: of the server, null = as the
    openai client has it. `mode`: pairwise, or single (a mark from 1 to 10). `questions`: a JSON-lines file with `turns`
    (MT-Bench, Arena-Hard) or `instruction` (AlpacaEval), null = the prompts of the data; `references`: a file of
    answers to some of them. `against`: in pairwise mode, strength0, chosen, or a JSON-lines file of answers. `scale`: its
    verdicts: three ([[A]], [[B]], [[C]] for a tie) or five (Arena-Hard's [[A>>B]] to [[B>>A]]). `second_turn_strength`: of the
    model in the second turn of a question, null = as in the first. `temperature` and `max_tokens`:
    of the judge. `parallel`: questions that are asked at a time; `retries`: of one; `seconds`: the longest wait."""

    model: Annotated[str | None, text(filled=True)]
    base_url: Annotated[str | None, text(filled=True)]
    mode: Annotated[str, one_of("pairwise", "single")]
    questions: Annotated[str | None, path()]
    references: Annotated[str | None, path()]
    against: Annotated[str, path()]
    scale: Annotated[str, one_of("three", "five")]
    second_turn_strength: Annotated[float | None, number()]
    temperature: Annotated[float, number(minimum=0, maximum=2)]
    max_tokens: Annotated[int, number(minimum=1)]
    parallel: Annotated[int, number(minimum=1, maximum=256)]
    retries: Annotated[int, number(minimum=0, maximum=20)]
    seconds: Annotated[float, number(above=0)]

    def check(self, where: str) -> None:
        """Raises ConfigError for a judge without the client, and for answers of the data to questions of a file."""
        if self.model and self.mode == "pairwise" and self.questions and self.against == "chosen":
            raise ConfigError(
                f"{where}.against=chosen are answers of the data, but the questions are of a file; set it to strength0, or to a"
                " file of answers."
            )
        if self.second_turn_strength is not None and self.mode != "single":
            raise ConfigError(
                f"{where}.second_turn_strength={self.second_turn_strength:g} is of questions with two turns, whose answers are"
                f" marked alone; set {where}.mode=single, or leave it out."
            )
        if self.model:
            _installed(f"{where}.model", "openai", "the openai client", "judge")


@dataclass
class EvaluationConfig:
    """`suites`: which, in order (the first gives the headline). `prompts`: texts sampled per strength. `pairs`: held-out
    pairs scored. How texts are sampled, from `max_new_tokens` to `beams`: see `Sampling`. The last five: what suites of the
    same names need beside the data; each measures where its first value is given. `safe_range`: by what the strengths that hold
    are found."""

    name: str
    suites: list[str]
    prompts: Annotated[int, number(minimum=2, smoke=8)]
    pairs: Annotated[int, number(minimum=2, smoke=16)]
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
    safe_range: SafeRangeConfig
    lm_eval: HarnessConfig
    judge: JudgeConfig
    reward_model: RewardModelConfig
    text: TextConfig
    lexicon: LexiconConfig

    def cache_key(self) -> list[str]:
        """The content of every file that is named. Raises ConfigError for one that does not exist."""
        return content_keys([file for key, place in self._named() for file in _files_at(key, place)])

    def _named(self) -> Iterator[tuple[str, str]]:
        """The files and folders that are read, by their keys."""
        against = self.judge.against if self.judge.against not in SIDES else None
        named = {
            "lm_eval.include": self.lm_eval.include,
            "judge.questions": self.judge.questions,
            "judge.references": self.judge.references,
            "judge.against": against,
            "text.path": self.text.path,
            "lexicon.path": self.lexicon.path,
        }
        for key, place in named.items():
            if place is not None:
                yield f"evaluation.{key}", place
        if self.reward_model.path and Path(self.reward_model.path).is_dir():
            yield "evaluation.reward_model.path", self.reward_model.path

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


def _files_at(key: str, place: str) -> list[Path]:
    root = Path(place)
    if not root.exists():
        raise ConfigError(f"{key}={place} does not exist; give a file or folder that does.")
    return (
        sorted(file for file in root.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        if root.is_dir()
        else [root]
    )


def _installed(key: str, module: str, what: str, extra: str) -> None:
    if find_spec(module) is None:
        raise ConfigError(f"{key} needs {what}, which is not installed; pip install 'alignlab[{extra}]', or leave it out.")
