"""The Trainer's arguments: every number from a config, and what trainer.extra may and may not add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from alignlab.errors import ConfigError
from alignlab.training.arguments import ALLOWED, MEANT, arguments, check_arguments
from tests.unit.conftest import fit_config, trainer_config


def checked(**extra: Any) -> None:
    check_arguments(fit_config(), trainer_config(extra=extra), steps=6)


def test_every_number_of_the_configs_reaches_the_trainer(tmp_path: Path) -> None:
    trainer = trainer_config(micro_batch=2, extra={"optim": "adafactor"})

    made = arguments(fit_config(batch=8, warmup_fraction=0.25), trainer, tmp_path, 10, seed=3)

    assert (made.gradient_accumulation_steps, made.warmup_steps, made.max_steps, made.seed) == (4, 3, 10, 3)
    assert (made.learning_rate, made.adam_beta1, made.adam_beta2, made.optim.value) == (1e-2, 0.9, 0.999, "adafactor")


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("learning_rate", 1.0, "method.STAGE.learning_rate"),
        ("adam_beta2", 0.95, "method.STAGE.adam_beta2"),
        ("warmup_steps", 3, "method.STAGE.warmup_fraction"),
        ("resume_from_checkpoint", "x", "force=false, which resumes from the last checkpoint by itself"),
        ("label_smoothing_factor", 0.1, "method.smoothing, of a method that has it"),
        ("neftune_noise_alpha", 5.0, "tuner.dropout, of a tuner that has it, since embeddings get no noise here"),
        ("eval_strategy", "steps", "trainer.validation"),
        ("logging_steps", 1, "trainer.log_every_steps"),
        ("report_to", "wandb", "tracking"),
    ],
)
def test_a_key_that_would_change_what_the_plan_says_is_refused_with_the_key_that_is_meant(
    key: str, value: object, meant: str
) -> None:
    with pytest.raises(ConfigError) as info:
        checked(**{key: value})

    assert str(info.value) == f"trainer.extra.{key} would change what the plan says; set {meant}."


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"gradient_checkpoint": True}, "unknown key of trainer.extra .*did you mean gradient_checkpointing"),
        ({"push_to_hub": True}, "trainer.extra.push_to_hub has no effect here"),
        ({"dataloader_num_workers": 2}, "trainer.extra.dataloader_num_workers has no effect here"),
        ({"bf16": "yes"}, "trainer.extra.bf16='yes' must be of type bool"),
        ({"torch_empty_cache_steps": True}, "trainer.extra.torch_empty_cache_steps=True must be of type int or null"),
        ({"optim": "zzz"}, "trainer.extra.optim=zzz: transformers takes no such value .zzz is not a valid OptimizerNames"),
        ({"optim": "lomo"}, "trainer.extra.optim=lomo: transformers takes no such value"),
        ({"optim_args": "zz"}, "trainer.extra.optim_args=zz: transformers takes no such value"),
        ({"lr_scheduler_kwargs": {"zz": 1}}, "transformers takes no such value .*zz"),
        ({"accelerator_config": {"zz": 1}}, "transformers takes no such value .*zz"),
        ({"bf16": True, "fp16": True}, "trainer.extra.bf16=True, trainer.extra.fp16=True: .*At most one"),
    ],
)
def test_what_transformers_would_ignore_or_stumble_over_is_refused_in_a_sentence(extra: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        checked(**extra)


def test_each_allowed_key_is_one_of_transformers_and_none_is_meant_for_another_place() -> None:
    known = TrainingArguments.__dataclass_fields__

    assert set(ALLOWED) <= known.keys()
    assert MEANT.keys() <= known.keys()
    assert not set(ALLOWED) & MEANT.keys()


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ConfigError, match=r"trainer\.device=cuda, but torch sees no GPU here"):
        arguments(fit_config(), trainer_config(device="cuda"), Path("x"), 6, seed=0)
