"""The configs that say how a stage trains, and on what machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from alignlab.errors import ConfigError

PACKINGS = ("pairs", "all", "off")
NOT_FOR_VALIDATION = ("train", "test", "labelled", "labelled_test", "rm", "ppo", "corpus")
"""Splits that are trained on, or that the report is for."""
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass(frozen=True)
class Length:
    """How long a stage trains: `epochs` or `steps`, of `batch` groups."""

    epochs: float | None
    steps: int | None
    batch: int

    def total_steps(self, groups: int) -> int:
        """Optimiser steps for so many groups."""
        return self.steps if self.steps is not None else max(1, math.ceil(float(self.epochs or 0) * groups / self.batch))


@dataclass
class FitConfig:
    """One training stage. `epochs` or `steps`: exactly one, the other null. `batch`: groups (rows or pairs) per optimiser
    step. `max_grad_norm` 0: no clipping. `loss_on`: response | all (the prompt counts too)."""

    epochs: float | None
    steps: int | None
    batch: int
    learning_rate: float
    schedule: str
    warmup_fraction: float
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    max_grad_norm: float
    loss_on: str

    def check(self, where: str) -> None:
        """Raises ConfigError for settings that cannot train."""
        if (self.epochs is None) == (self.steps is None):
            raise ConfigError(
                f"{where}: give epochs or steps, and null for the other; now epochs={self.epochs} and steps={self.steps}."
            )
        if (self.steps is not None and self.steps < 1) or (self.epochs is not None and self.epochs <= 0):
            raise ConfigError(
                f"{where}: nothing to train with steps={self.steps}, epochs={self.epochs}; give at least one step."
            )
        if self.batch < 1:
            raise ConfigError(f"{where}.batch={self.batch} must be at least 1.")
        if not self.learning_rate > 0:
            raise ConfigError(f"{where}.learning_rate={self.learning_rate} must be above 0.")
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(f"{where}.warmup_fraction={self.warmup_fraction} must be at least 0 and below 1.")
        for key in ("weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{where}.{key}={getattr(self, key)} must not be negative.")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"{where}.schedule={self.schedule!r} is not known; choose one of {', '.join(SCHEDULES)}.")
        if self.loss_on not in ("response", "all"):
            raise ConfigError(f"{where}.loss_on={self.loss_on!r} is not known; choose response or all.")

    @property
    def length(self) -> Length:
        """Of the stage, its rates aside."""
        return Length(self.epochs, self.steps, self.batch)

    def total_steps(self, groups: int) -> int:
        """Optimiser steps for so many groups."""
        return self.length.total_steps(groups)


@dataclass
class ValidationConfig:
    """What is measured while a stage trains. `suite`: of the evaluation's; `metric`: the one of its numbers that is watched.
    `split`: of the data; where it has none of this name, about `share` of its training records are held out by `seed`, prompts
    as a whole (null: refused). `rows`: at most so many records or prompts are measured. `every_steps` or `every_epochs`:
    exactly one, the other null; always behind the last step. `keep_best`: a stage ends with its best weights, of equal ones
    the earliest. `stages`: which; null = all that train something that stays in the policy."""

    suite: str
    metric: str
    higher_is_better: bool
    keep_best: bool
    split: str
    share: float | None
    seed: int
    rows: int
    every_steps: int | None
    every_epochs: float | None
    stages: list[str] | None

    def check(self) -> None:
        """Raises ConfigError for numbers without a meaning, and for a split that is there for something else."""
        where = "trainer.validation"
        if (self.every_steps is None) == (self.every_epochs is None):
            raise ConfigError(
                f"{where}: give every_steps or every_epochs, and null for the other; now every_steps={self.every_steps} and"
                f" every_epochs={self.every_epochs}."
            )
        if self.every_steps is not None and self.every_steps < 1:
            raise ConfigError(f"{where}.every_steps={self.every_steps} must be at least 1.")
        if self.every_epochs is not None and not (math.isfinite(self.every_epochs) and self.every_epochs > 0):
            raise ConfigError(f"{where}.every_epochs={self.every_epochs} must be a finite number above 0.")
        if self.rows < 2:
            raise ConfigError(f"{where}.rows={self.rows} must be at least 2.")
        if self.seed < 0:
            raise ConfigError(f"{where}.seed={self.seed} must not be negative.")
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(f"{where}.share={self.share} is a share of the training records; it must lie between 0 and 1.")
        if self.split in NOT_FOR_VALIDATION:
            raise ConfigError(f"{where}.split={self.split!r} is trained on or reported; name another, such as validation.")

    def steps(self, total: int, groups: int, batch: int) -> frozenset[int]:
        """Behind which of a stage's steps it is measured: the last, and one in every interval before it."""
        every = float(self.every_steps or float(self.every_epochs or 0) * groups / batch)
        counted = (math.ceil(number * every) for number in range(1, int(total / every) + 1))
        return frozenset({total, *(step for step in counted if step < total)})


@dataclass
class TrainerConfig:
    """The machine's side of training. `device`: auto | cpu | cuda. `micro_batch`: groups per forward pass, null = all that a
    process has of a batch. `packing`: which batches are laid into one row without padding, each prompt that members share once,
    where the backbone can: pairs (groups with something to share) | all | off. `gradient_checkpointing`: blocks keep no
    activations and are computed again for the gradient. `pass_gib`: GiB that a pass without gradients (decoding, scoring,
    references, collecting) may take beside the weights; fewer rows run together where more would not fit. `extra`: further
    transformers.TrainingArguments. `validation`: what is measured on the way; null = nothing."""

    name: str
    device: str
    micro_batch: int | None
    packing: str
    gradient_checkpointing: bool
    pass_gib: float
    checkpoint_every_steps: int
    keep_checkpoints: int
    log_every_steps: int
    threads: int | None
    extra: dict[str, Any]
    validation: ValidationConfig | None

    def check(self) -> None:
        """Raises ConfigError for a device or a number that does not exist."""
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"trainer.device={self.device!r} is not known; choose auto, cpu or cuda.")
        if self.packing not in PACKINGS:
            raise ConfigError(f"trainer.packing={self.packing!r} is not known; choose one of {', '.join(PACKINGS)}.")
        if not 0 < self.pass_gib < math.inf:
            raise ConfigError(f"trainer.pass_gib={self.pass_gib} must be a finite number of GiB above 0.")
        if self.keep_checkpoints < 2:
            raise ConfigError(
                "trainer.keep_checkpoints must be at least 2: the last good one stays until the next is complete."
            )
        for key in ("checkpoint_every_steps", "log_every_steps"):
            if getattr(self, key) < 1:
                raise ConfigError(f"trainer.{key}={getattr(self, key)} must be at least 1.")
        if self.validation is not None:
            self.validation.check()
        for key in ("micro_batch", "threads"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ConfigError(f"trainer.{key}={getattr(self, key)} must be at least 1, or null.")

    def micro(self, batch: int, processes: int = 1) -> int:
        """Groups per forward pass of a process; raises ConfigError where the batch cannot be dealt out evenly."""
        if batch % processes:
            raise ConfigError(
                f"the stage's batch of {batch} cannot be dealt out to {processes} processes; take a batch or a number of"
                " processes of which one divides the other."
            )
        own = batch // processes
        micro = min(self.micro_batch or own, own)
        if own % micro:
            of = f"the {own} of each of {processes} processes" if processes > 1 else f"the stage's batch of {batch}"
            raise ConfigError(f"trainer.micro_batch={micro} does not divide {of}; take a divisor.")
        return micro
