"""Small parts that many unit tests arrange: policies, batches, configs, sessions and composed configs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

from alignlab.data.batching import whole
from alignlab.data.halves import PrefixConfig
from alignlab.evaluation.config import (
    EvaluationConfig,
    HarnessConfig,
    JudgeConfig,
    LexiconConfig,
    RewardModelConfig,
    SafeRangeConfig,
    TextConfig,
)
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from alignlab.models.strength import Untuned
from alignlab.records import Batch, EncodedGroup, Example
from alignlab.registry import typed
from alignlab.tracking import NoTracker
from alignlab.tracking.ledger import Ledger
from alignlab.training.config import FitConfig, TrainerConfig
from alignlab.training.stages import Session
from alignlab.tuners import TUNERS

# Tensors here are small: threads cost more than they save, and on a busy machine they wait for each other.
torch.set_num_threads(1)
CONF = Path(__file__).parents[2] / "conf"
PAIRS = (
    ("Tell a story about Tom and a kite.", "Tom was happy.", "Tom was sad and lost his kite. He went home."),
    ("Tell a short story about Anna.", "Anna found a red ball. She was proud.", "Anna fell."),
    ("Tell a story.", "Once there was a dog.", "The cat was angry. The end."),
    ("Tell a gloomy story about Sam and a boat.", "Sam lost the boat.", "Sam saw a boat. It was glad."),
)
DATA: dict[str, Any] = {
    "max_tokens": None,
    "too_long": "error",
    "limit": None,
    "test_limit": None,
    "prefixes": PrefixConfig(None, None, ""),
    "flipped": 0.0,
    "halves": None,
    "part": None,
}
"""What every data config has, as a test needs it that asks for none of it."""
HUB: dict[str, Any] = {**DATA, "hub": "someone/data", "revision": None, "records": None}
"""The same of a data set of the hub."""
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": []},
    "red": {"edit": "both", "place": "ffn", "targets": None},
    "full": {},
    "clm": {"blocks": 1, "start": "identity", "merge": "logits", "targets": None, "writes": None},
    "dera": {"aligned": None},
    "ia3": {"targets": None, "feedforward": None},
}


class Heard(BaseStreamer):
    """What a streamer was given."""

    def __init__(self) -> None:
        self.put_ids: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.put_ids.append(value)

    def end(self) -> None:
        self.ended += 1


def checked(where: str, config: Any) -> Any:
    """A config's instance as parsing checks it."""
    return typed(where, asdict(config), type(config))


def plain(backbone: Backbone) -> Policy:
    """The backbone alone."""
    return Policy(backbone, Untuned())


def attached(tuner: str, backbone: Backbone, *, spread: float = 0.1) -> Policy:
    """A backbone with a tuner whose numbers were moved away from the identity; spread 0 leaves it new."""
    entry = TUNERS[tuner]
    config = entry.config(name=tuner, likelihood_rate=1e-2, preference_rate=1e-2, **SETTINGS[tuner])
    torch.manual_seed(0)
    policy = Policy(backbone, entry.build(config, backbone.model))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learned(policy):
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return policy


def learned(policy: Policy) -> list[nn.Parameter]:
    """The tuner's parameters."""
    parameters: list[nn.Parameter] = policy.tuner.parameters()  # type: ignore[attr-defined]
    return parameters


def encoded(backbone: Backbone, pairs: Sequence[tuple[str, str, str]] = PAIRS) -> list[EncodedGroup]:
    """Pairs as groups of ids."""
    rows = [f"pair {number}" for number in range(len(pairs))]
    examples = [Example(prompt, answer) for prompt, *answers in pairs for answer in answers]
    flat = iter(backbone.codec.examples(examples, [row for row in rows for _ in range(2)]))
    return [EncodedGroup(row, (next(flat), next(flat))) for row in rows]


def batch_of(backbone: Backbone, pairs: Sequence[tuple[str, str, str]] = PAIRS) -> Batch:
    """Pairs as one batch that is a step by itself."""
    return whole(encoded(backbone, pairs), backbone.codec.pad)


def fit_config(**changes: Any) -> FitConfig:
    """A small training stage: six steps of two groups."""
    values: dict[str, Any] = {
        "epochs": None,
        "steps": 6,
        "batch": 2,
        "learning_rate": 1e-2,
        "schedule": "linear",
        "warmup_fraction": 0.2,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "loss_on": "response",
    }
    return FitConfig(**{**values, **changes})


def judge_config(**changes: Any) -> JudgeConfig:
    """No judge, until a model is given."""
    values: dict[str, Any] = {
        "model": None,
        "base_url": None,
        "mode": "pairwise",
        "questions": None,
        "references": None,
        "against": "strength0",
        "scale": "three",
        "second_turn_strength": None,
        "temperature": 0.0,
        "max_tokens": 64,
        "parallel": 2,
        "retries": 2,
        "seconds": 5.0,
    }
    return JudgeConfig(**{**values, **changes})


def evaluation_config(**changes: Any) -> EvaluationConfig:
    """Texts drawn at temperature 1, nothing left out."""
    values: dict[str, Any] = {
        "name": "quick",
        "suites": ["toy"],
        "prompts": 4,
        "pairs": 4,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "stop": [],
        "beams": 1,
        "sampling_seed": 0,
        "safe_range": SafeRangeConfig(metric=None, tolerance=0.1),
        "lm_eval": HarnessConfig(tasks=[], include=None, shots=None, limit=None, chat=False, tokens=4096),
        "judge": judge_config(),
        "reward_model": RewardModelConfig(path=None, revision=None, template="chat", against="strength0", batch=4),
        "text": TextConfig(path=None, lines=None, window=None, stride=None),
        "lexicon": LexiconConfig(path=None),
    }
    return EvaluationConfig(**{**values, **changes})


def trainer_config(**changes: Any) -> TrainerConfig:
    """A CPU trainer that checkpoints every other step."""
    values: dict[str, Any] = {
        "name": "default",
        "device": "cpu",
        "micro_batch": None,
        "packing": "pairs",
        "gradient_checkpointing": False,
        "pass_gib": 16.0,
        "checkpoint_every_steps": 2,
        "keep_checkpoints": 2,
        "keep_optimizer": False,
        "log_every_steps": 1,
        "threads": None,
        "extra": {},
        "validation": None,
    }
    return TrainerConfig(**{**values, **changes})


def session_in(folder: Path, **changes: Any) -> Session:
    """A session without a tracker."""
    return Session(folder, folder / ".store", Ledger(folder), NoTracker(), trainer_config(**changes), "cpu", seed=0)


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., DictConfig]]:
    """Composes a run in this process, on a stand-in for a local model: `composed("method=dpo", "data=toy")`."""
    monkeypatch.delenv("ALIGNLAB_DATA", raising=False)
    monkeypatch.delenv("ALIGNLAB_MODELS", raising=False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    stand_in = ["model=local", f"model.path={tmp_path / 'model'}"]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        yield lambda *words: compose("run", overrides=[*stand_in, *words])
