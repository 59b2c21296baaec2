"""The configs that say how a stage trains, and on what machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from alignlab.errors import ConfigError
from alignlab.registry import number, one_of, random_seed

NOT_FOR_VALIDATION = ("train", "test", "labelled", "labelled_test", "rm", "ppo", "corpus")
"""Splits that are trained on, or that the report is for."""
MOST_EPOCHS, MOST_STEPS, LARGEST_BATCH = 100_000, 10_000_000, 1_000_000
"""Of a stage, whose batches are all planned before its first step."""


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

    epochs: Annotated[float | None, number(above=0, maximum=MOST_EPOCHS, either="steps")]
    steps: Annotated[int | None, number(minimum=1, maximum=MOST_STEPS, smoke=4, null_is_all=True)]
    batch: Annotated[int, number(minimum=1, maximum=LARGEST_BATCH)]
    learning_rate: Annotated[float, number(above=0)]
    schedule: Annotated[str, one_of("linear", "cosine", "constant", "constant_with_warmup")]
    warmup_fraction: Annotated[float, number(minimum=0, below=1)]
    weight_decay: Annotated[float, number(minimum=0)]
    adam_beta1: Annotated[float, number(minimum=0, below=1)]
    adam_beta2: Annotated[float, number(minimum=0, below=1)]
    adam_epsilon: Annotated[float, number(above=0)]
    max_grad_norm: Annotated[float, number(minimum=0)]
    loss_on: Annotated[str, one_of("response", "all")]

    @property
    def length(self) -> Length:
        """Of the stage, its rates aside."""
        return Length(self.epochs, self.steps, self.batch)

    def total_steps(self, groups: int) -> int:
        """Optimiser steps for so many groups."""
        return self.length.total_steps(groups)

    def warmup_steps(self, steps: int) -> int:
        """Those of so many steps in which the rate rises; a constant schedule has none."""
        return 0 if self.schedule == "constant" else math.ceil(self.warmup_fraction * steps)

    def rates(self, steps: int) -> str:
        """The rate and how it changes over so many steps, for the plan: `0.05, linear, 4 steps of warm-up`."""
        warmup = self.warmup_steps(steps)
        rising = f", {warmup} step{'s' if warmup > 1 else ''} of warm-up" if warmup else ""
        return f"{self.learning_rate:g}, {self.schedule.removesuffix('_with_warmup')}{rising}"


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
    share: Annotated[float | None, number(above=0, below=1, note="a share of the training records")]
    seed: Annotated[int, random_seed()]
    rows: Annotated[int, number(minimum=2, smoke=8)]
    every_steps: Annotated[int | None, number(minimum=1, either="every_epochs", smoke=2, null_is_all=True)]
    every_epochs: Annotated[float | None, number(minimum=1e-4)]
    stages: list[str] | None

    def check(self, where: str) -> None:
        """Raises ConfigError for a split that is there for something else."""
        if self.split in NOT_FOR_VALIDATION:
            raise ConfigError(f"{where}.split={self.split!r} is trained on or reported; name another, such as validation.")

    def steps(self, total: int, groups: int, batch: int) -> frozenset[int]:
        """Behind which of a stage's steps it is measured: the last, and one in every interval before it."""
        every = float(self.every_steps or float(self.every_epochs or 0) * groups / batch)
        counted = (math.ceil(number * every) for number in range(1, int(total / every) + 1))
        return frozenset({total, *(step for step in counted if step < total)})


@dataclass
class TrainerConfig:
    """How training uses a machine. `device`: auto | cpu | cuda. `micro_batch`: groups per forward pass, null = all that a
    process has of a batch. `packing`: which batches are laid into one row without padding, each prompt that members share once,
    where the backbone can: pairs (groups with something to share) | all | off. `gradient_checkpointing`: blocks keep no
    activations and are computed again for the gradient. `pass_gib`: GiB that a pass without gradients (decoding, scoring,
    references, collecting) may take beside the weights; fewer rows run together where more would not fit.
    `keep_optimizer`: a finished stage keeps the optimiser states of its checkpoints. `extra`: further
    transformers.TrainingArguments. `validation`: what is measured on the way; null = nothing."""

    name: str
    device: Annotated[str, one_of("auto", "cpu", "cuda")]
    micro_batch: Annotated[int | None, number(minimum=1)]
    packing: Annotated[str, one_of("pairs", "all", "off")]
    gradient_checkpointing: bool
    pass_gib: Annotated[float, number(above=0)]
    checkpoint_every_steps: Annotated[int, number(minimum=1)]
    keep_checkpoints: Annotated[int, number(minimum=2, note="the last good one stays until the next is complete")]
    keep_optimizer: bool
    log_every_steps: Annotated[int, number(minimum=1)]
    threads: Annotated[int | None, number(minimum=1, maximum=8192)]
    extra: dict[str, Any]
    validation: ValidationConfig | None

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


@dataclass
class LocalLaunch:
    """Runs the jobs in this process, one after the other."""

    name: str


@dataclass
class SizeConfig:
    """What a job asks for whose model has at most so many `billions` of parameters, null = any number. `gpus`, `memory_gb`,
    `cpus` (of each process): null leaves it to the cluster."""

    billions: Annotated[float | None, number(above=0)]
    gpus: Annotated[int | None, number(minimum=1)]
    memory_gb: Annotated[int | None, number(minimum=1)]
    cpus: Annotated[int | None, number(minimum=1)]


@dataclass
class SlurmLaunch:
    """One job of a SLURM array each; jobs that ask for other resources are another array.

    `gpus`: of one job, which has a process for each; `cpus`: of a process; `memory_gb`: of a job. Where one of
    them is null, the first of `sizes` that holds the job's model says it; of `cpus` first `trainer.threads`. `minutes`: its
    time limit.
    `signal_seconds` before it a job saves and goes back into the queue, at most `retries` times. So it does when it is
    preempted, on a cluster that sends the signal then too (conf/launch/slurm.yaml). `parallel`: jobs at a time. `setup`: shell
    commands before a job. `extra`: further options of sbatch, without their dashes. `detach`: submit and return at once.
    """

    name: str
    partition: str | None
    account: str | None
    gpus: Annotated[int | None, number(minimum=1)]
    cpus: Annotated[int | None, number(minimum=1)]
    memory_gb: Annotated[int | None, number(minimum=1)]
    sizes: list[SizeConfig]
    minutes: Annotated[int, number(minimum=1)]
    signal_seconds: Annotated[int, number(minimum=1)]
    retries: Annotated[int, number(minimum=0)]
    parallel: Annotated[int, number(minimum=1)]
    setup: list[str]
    extra: dict[str, Any]
    detach: bool

    def check(self, where: str) -> None:
        """Raises ConfigError for a signal that would come before the job."""
        if self.signal_seconds >= 60 * self.minutes:
            raise ConfigError(
                f"{where}.signal_seconds={self.signal_seconds} must be below {where}.minutes={self.minutes} in seconds: the"
                " signal comes that long before the limit."
            )
