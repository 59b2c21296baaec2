"""The arguments of transformers' Trainer: every number from a config, and what `trainer.extra` may add to them."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler

from alignlab.errors import ConfigError
from alignlab.registry import unknown
from alignlab.training import processes
from alignlab.training.config import FitConfig, TrainerConfig

ALLOWED = (
    *("bf16", "fp16", "tf32", "optim", "optim_args", "lr_scheduler_kwargs", "torch_empty_cache_steps", "full_determinism"),
    *("fsdp", "fsdp_config", "deepspeed", "accelerator_config", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    *("log_level", "log_level_replica"),
)
"""Arguments that have an effect here and change nothing that the plan says."""
_OF_A_STAGE = {
    **{name: name for name in ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")},
    **{"lr_scheduler_type": "schedule", "warmup_steps": "warmup_fraction", "max_steps": "steps", "num_train_epochs": "epochs"},
    "per_device_train_batch_size": "batch",
}
_OF_OTHERS: Mapping[str, tuple[str, ...]] = {
    "trainer.micro_batch": ("gradient_accumulation_steps", "auto_find_batch_size"),
    "trainer.checkpoint_every_steps": ("save_strategy", "save_steps", "save_only_model", "save_on_each_node"),
    "trainer.keep_checkpoints": ("save_total_limit",),
    "trainer.log_every_steps": ("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter"),
    "trainer.device": ("use_cpu",),
    "trainer.gradient_checkpointing": (
        *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
        *("activation_checkpointing", "activation_checkpointing_kwargs"),
    ),
    "trainer.validation": (
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "do_eval", "per_device_eval_batch_size"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    ),
    "seed": ("data_seed",),
    "folder": ("output_dir",),
    "force=false, which resumes from the last checkpoint by itself": ("resume_from_checkpoint", "ignore_data_skip"),
    "tracking": ("report_to", "run_name", "project"),
    "method.smoothing, of a method that has it": ("label_smoothing_factor",),
    "tuner.dropout, of a tuner that has it, since embeddings get no noise here": ("neftune_noise_alpha",),
}
MEANT: Mapping[str, str] = {
    **{name: f"method.STAGE.{own}" for name, own in _OF_A_STAGE.items()},
    **{name: key for key, names in _OF_OTHERS.items() for name in names},
    "seed": "seed",
}
"""Arguments that the plan of steps, resuming or the ledger depend on -> the key that is meant."""
SHARDING = ("fsdp", "fsdp_config", "deepspeed")
"""Looked at by themselves: transformers takes more of them than it annotates, and some of it on GPUs only."""
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Arguments under which passes are computed in another dtype than the weights'."""


def device_of(wanted: str) -> str:
    """cpu or cuda. Raises ConfigError for a GPU that torch does not see."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda, but torch sees no GPU here; choose auto or cpu.")
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def arguments(fit: FitConfig, trainer: TrainerConfig, folder: Path, steps: int, seed: int) -> TrainingArguments:
    """The Trainer's arguments of a stage."""
    given: dict[str, Any] = dict(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=fit.batch // processes.count() // trainer.micro(fit.batch, processes.count()),
        ddp_find_unused_parameters=True,  # a micro-batch may lack a class, and with it that class's control
        learning_rate=fit.learning_rate,
        lr_scheduler_type=fit.schedule,
        warmup_steps=fit.warmup_steps(steps),
        weight_decay=fit.weight_decay,
        adam_beta1=fit.adam_beta1,
        adam_beta2=fit.adam_beta2,
        adam_epsilon=fit.adam_epsilon,
        max_grad_norm=fit.max_grad_norm,
        optim="adamw_torch",
        seed=seed,
        data_seed=seed,
        logging_steps=trainer.log_every_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=trainer.checkpoint_every_steps,
        save_total_limit=trainer.keep_checkpoints,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=device_of(trainer.device) == "cpu",
    )
    made = TrainingArguments(**{**given, **trainer.extra})
    if made.n_gpu > 1:
        made._n_gpu = 1  # several devices mean several processes; the Trainer would wrap the model in DataParallel
    return made


def autocast(trainer: TrainerConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Inside, passes are computed as the Trainer computes those of its model."""
    dtype = next((dtype for name, dtype in AUTOCAST.items() if trainer.extra.get(name)), None)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def check_extra(trainer: TrainerConfig) -> None:
    """Raises ConfigError for a key of `trainer.extra` that is not for it, or that transformers.TrainingArguments does not have,
    for a value of another type; and where it asks for FSDP or DeepSpeed and this run cannot have it."""
    hints = typing.get_type_hints(TrainingArguments)
    for key, value in trainer.extra.items():
        if key in MEANT:
            raise ConfigError(f"trainer.extra.{key} would change what the plan says; set {MEANT[key]}.")
        if key not in hints:
            known = [field.name for field in dataclasses.fields(TrainingArguments)]
            raise ConfigError(unknown("key of trainer.extra (transformers.TrainingArguments)", key, known))
        if key not in ALLOWED:
            raise ConfigError(
                f"trainer.extra.{key} has no effect here, or is the frame's own; trainer.extra takes {', '.join(ALLOWED)}."
            )
        if key not in SHARDING and not _is(value, hints[key]):
            raise ConfigError(f"trainer.extra.{key}={value!r} must be of type {_written(hints[key])}.")
    asked = next((key for key in ("fsdp", "deepspeed") if trainer.extra.get(key)), None)
    if asked == "deepspeed" and find_spec("deepspeed") is None:
        raise ConfigError("trainer.extra.deepspeed needs the package deepspeed; pip install deepspeed, or take trainer=fsdp.")
    if asked and (trainer.device == "cpu" or not torch.cuda.is_available()):
        # transformers would train with plain DDP and not say so.
        raise ConfigError(f"trainer.extra.{asked} shards over GPUs, and this run has none; take trainer=default.")
    if asked and processes.count() == 1:
        raise ConfigError(
            f"trainer.extra.{asked} shards over processes, and there is one; start them with"
            " torchrun --nproc_per_node N run.py ..., or take trainer=default."
        )


def check_arguments(fit: FitConfig, trainer: TrainerConfig, steps: int) -> None:
    """Raises ConfigError for what `check_extra` refuses, and for values that transformers does not take: arguments, optimiser
    and schedule are made as a stage makes them, of one parameter."""
    check_extra(trainer)
    given = {key: value for key, value in trainer.extra.items() if key not in SHARDING}
    if not given:
        return
    try:
        made = arguments(fit, dataclasses.replace(trainer, extra=given), Path("planned"), steps, seed=0)
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(made)
        optimizer = kind([nn.Parameter(torch.zeros(1))], **settings)
        get_scheduler(
            made.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=made.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=typing.cast("dict[str, Any] | None", made.lr_scheduler_kwargs),
        )
    except (ValueError, TypeError, ImportError, RuntimeError, KeyError, AttributeError) as error:
        named = ", ".join(f"trainer.extra.{key}={value}" for key, value in given.items())
        why = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{named}: transformers takes no such value ({why}); take another, or leave it out.") from error


def _is(value: Any, hint: Any) -> bool:
    """Whether a value of a config is of a type of TrainingArguments; of several, any."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) not in (None, dict, list) else (hint,)
    return any(_is_one(value, typing.get_origin(kind) or kind) for kind in kinds)


def _is_one(value: Any, kind: Any) -> bool:
    if not isinstance(kind, type):
        return False
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, str if issubclass(kind, Enum) else kind)


def _written(hint: Any) -> str:
    """A type in words."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) not in (None, dict, list) else (hint,)
    names = ["null" if kind is NoneType else getattr(typing.get_origin(kind) or kind, "__name__", str(kind)) for kind in kinds]
    return " or ".join(names)
