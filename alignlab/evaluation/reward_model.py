"""Answers under a reward model: any sequence classifier of one output, with its own tokenizer and template."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignlab.commits import hub_silence
from alignlab.data.rows import spoken
from alignlab.errors import ConfigError, ModelError
from alignlab.evaluation import Point
from alignlab.evaluation.config import EvaluationConfig, RewardModelConfig
from alignlab.evaluation.statistics import Measurement, bootstrap, item_names, share
from alignlab.evaluation.suite import EvaluationContext, answers_beside
from alignlab.records import Dialogue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 100_000
"""A tokenizer that names a longer text than this names none."""


class RewardModel:
    """Mean reward of the sampled answers, and how often they win against others."""

    def __init__(self, context: EvaluationContext) -> None:
        self._context, self._config = context, context.config.reward_model
        self._scorer: Scorer | None = None

    def measure(self, point: Point) -> list[Measurement]:
        """`reward`: the mean; `win_rate`: the share of prompts whose answer has a higher reward than the one it is compared
        with, equal ones one half. A prompt that has nothing to be compared with is left out and counted in the note."""
        if self._scorer is None:
            self._scorer = Scorer(self._config, str(self._context.policy.backbone.device))
        prompts, texts = self._context.answers(point)
        names = item_names(prompts)
        rewards = self._scorer.rewards(prompts, texts, self._context.begun.of(f"rewards at {point}"))
        measured = [bootstrap("reward", rewards, names=names)]
        if self._config.against is None:
            return measured
        others, note = answers_beside(self._context, point, self._config.against)
        asked = [place for place, other in enumerate(others) if other is not None]
        kept = self._context.begun.of(f"rewards of {self._config.against} at {point}")
        theirs = self._scorer.rewards([prompts[place] for place in asked], [str(others[place]) for place in asked], kept)
        wins = [
            0.5 if rewards[place] == other else float(rewards[place] > other)
            for place, other in zip(asked, theirs, strict=True)
        ]
        won = share("win_rate", wins, [names[place] for place in asked])
        return [*measured, Measurement(**{**vars(won), "note": note})]


class Scorer:
    """A reward model, loaded. Rewards are kept by text, so what is asked again is not computed again."""

    def __init__(self, config: RewardModelConfig, device: str) -> None:
        from transformers import AutoModelForSequenceClassification

        self._config, self._device = config, device
        self._tokenizer, _ = _described(config)
        model: Any = _from(AutoModelForSequenceClassification, config, dtype="auto")
        self._model = model.to(device).eval()
        self._batch = config.batch if self._tokenizer.pad_token_id is not None else 1
        self._kept: dict[tuple[str, str], float] = {}

    def rewards(
        self, prompts: Sequence[str], answers: Sequence[str], kept: MutableMapping[int, Any] | None = None
    ) -> list[float]:
        """The reward of each answer to its prompt; texts that are too long lose their end. `kept`: the values of batches that
        are there already, by their numbers; others are put there."""
        asked = list(zip(prompts, answers, strict=True))
        kept = {} if kept is None else kept
        every = sorted(set(asked), key=lambda each: (-len(each[0]) - len(each[1]), each))
        for number, begin in enumerate(range(0, len(every), self._batch)):
            some = every[begin : begin + self._batch]
            if any(each not in self._kept for each in some):
                if number not in kept:
                    kept[number] = self._computed(some)
                self._kept |= dict(zip(some, kept[number], strict=True))
        return [self._kept[each] for each in asked]

    @torch.inference_mode()
    def _computed(self, some: Sequence[tuple[str, str]]) -> list[float]:
        longest = self._tokenizer.model_max_length
        positions = getattr(self._model.config, "max_position_embeddings", None)
        longest = min(each for each in (longest, positions or LONGEST, LONGEST) if each)
        given: dict[str, Any] = {"truncation": True, "max_length": longest, "return_tensors": "pt", "padding": len(some) > 1}
        if self._config.template == "pair":
            encoded = self._tokenizer([prompt for prompt, _ in some], [answer for _, answer in some], **given)
        else:
            chat = self._config.template == "chat"
            texts = [self._written(prompt, answer) for prompt, answer in some]
            encoded = self._tokenizer(texts, add_special_tokens=not chat, **given)
        scores = self._model(**{key: value.to(self._device) for key, value in encoded.items()}).logits
        return [float(value) for value in scores[:, 0].float().cpu()]

    def _written(self, prompt: str, answer: str) -> str:
        if self._config.template != "chat":
            before, _, behind = self._config.template.partition("{prompt}")
            return f"{before.replace('{answer}', answer)}{prompt}{behind.replace('{answer}', answer)}"
        messages = [*messages_of(prompt), {"role": "assistant", "content": answer}]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False))


def look(config: EvaluationConfig) -> None:
    """Reads the reward model's config and tokenizer, and builds it without weights. Raises ModelError for what is no sequence
    classifier of one output, and for a folder without weights; ConfigError for a template that it does not have."""
    from transformers import AutoModelForSequenceClassification

    asked = config.reward_model
    _, described = _described(asked)
    try:
        with torch.device("meta"):
            AutoModelForSequenceClassification.from_config(described)
    except (ImportError, ValueError) as error:
        raise _no_classifier(asked, error) from error
    folder = Path(str(asked.path))
    if folder.is_dir() and not any((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        raise ModelError(f"evaluation.reward_model.path={folder} holds no weights (*.safetensors); give a whole checkpoint.")


def _described(config: RewardModelConfig) -> tuple[PreTrainedTokenizerBase, Any]:
    """The tokenizer and the config of a reward model. Raises ModelError and ConfigError for what cannot give rewards."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _from(AutoTokenizer, config)
    described = _from(AutoConfig, config)
    if described.num_labels != 1:
        raise ModelError(f"evaluation.reward_model.path={config.path} has {described.num_labels} outputs and must have one.")
    if config.template == "chat" and not tokenizer.chat_template:
        raise ConfigError(
            f"evaluation.reward_model.path={config.path} has no chat template; set evaluation.reward_model.template to pair, or"
            " to a text with {prompt} and {answer}."
        )
    return tokenizer, described


def _from(auto: Any, config: RewardModelConfig, **more: Any) -> Any:
    """Loads from a folder or the hub. Raises ModelError with the reason."""
    path = str(config.path)
    silence = "" if Path(path).exists() else hub_silence("model", path, config.revision)
    try:
        return auto.from_pretrained(path, revision=config.revision, local_files_only=bool(silence), **more)
    except (OSError, ValueError, KeyError) as error:
        raise _no_classifier(
            config, f"no such folder, and the hub cannot be reached: {silence}" if silence else error
        ) from error


def _no_classifier(config: RewardModelConfig, why: object) -> ModelError:
    first = str(why).partition("\n")[0].rstrip(".")
    return ModelError(
        f"evaluation.reward_model.path={config.path} cannot be loaded as a sequence classifier ({first}); give a folder with"
        " its weights and tokenizer."
    )


def messages_of(prompt: str) -> list[dict[str, str]]:
    """The messages of a prompt: every turn of a dialogue, also of one that is written out as Human: and Assistant:."""
    turns = prompt.turns if isinstance(prompt, Dialogue) else spoken(prompt)
    if not turns:
        return [{"role": "user", "content": prompt}]
    return [{"role": turn.role, "content": turn.text} for turn in turns]
