"""The arguments of transformers' Trainer: every number from a config, and which of them `trainer.extra` may set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from alignlab.errors import ConfigError
from alignlab.registry import unknown
from alignlab.training import processes
from alignlab.training.config import FitConfig
from alignlab.training.session import Session
from alignlab.training.validation import Validation

OWNED = (
    "output_dir",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "activation_checkpointing",
    "seed",
    "data_seed",
    "report_to",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "eval_strategy",
    "eval_steps",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "remove_unused_columns",
    "use_cpu",
    "ddp_backend",
    "ddp_find_unused_parameters",
    "ddp_timeout",
    "local_rank",
)
"""Arguments that the plan of steps, resuming or the ledger depend on, or that a policy cannot honour."""


def arguments(
    fit: FitConfig, session: Session, folder: Path, steps: int, validation: Validation | None = None
) -> TrainingArguments:
    """The Trainer's arguments, every number from a config."""
    trainer = session.trainer
    best = validation.config if validation and validation.config.keep_best else None
    given: dict[str, Any] = dict(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=fit.batch // processes.count() // trainer.micro(fit.batch, processes.count()),
        ddp_find_unused_parameters=True,  # a micro-batch may lack a class, and with it that class's control
        learning_rate=fit.learning_rate,
        lr_scheduler_type=fit.schedule,
        warmup_steps=math.ceil(fit.warmup_fraction * steps),
        weight_decay=fit.weight_decay,
        adam_beta1=fit.adam_beta1,
        adam_beta2=fit.adam_beta2,
        adam_epsilon=fit.adam_epsilon,
        max_grad_norm=fit.max_grad_norm,
        optim="adamw_torch",
        seed=session.seed,
        data_seed=session.seed,
        logging_steps=trainer.log_every_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=trainer.checkpoint_every_steps,
        save_total_limit=trainer.keep_checkpoints + (1 if best else 0),  # the best is kept beside the others
        metric_for_best_model=best.metric if best else None,
        greater_is_better=best.higher_is_better if best else None,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=session.device == "cpu",
    )
    made = TrainingArguments(**{**given, **trainer.extra})
    if made.n_gpu > 1:
        made._n_gpu = 1  # several devices mean several processes; the Trainer would wrap the model in DataParallel
    return made


def check_extra(extra: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key that transformers.TrainingArguments does not have, or that is not for `extra`."""
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    for key in extra:
        if key in OWNED or key.startswith("dataloader_"):
            raise ConfigError(f"trainer.extra.{key} would be ignored or break the plan of steps; it is the frame's own.")
        if key not in known:
            raise ConfigError(unknown("key of trainer.extra (transformers.TrainingArguments)", key, known))
