"""The one transformers.Trainer of the project, with its arguments, checkpoints and callbacks; it trains any objective."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from alignlab.errors import ConfigError, DivergedError
from alignlab.models.policy import Policy
from alignlab.records import Batch, Loss
from alignlab.registry import unknown
from alignlab.tracking.ledger import Ledger
from alignlab.training import processes
from alignlab.training.config import FitConfig, TrainerConfig
from alignlab.training.objectives import Objective, check_first_loss
from alignlab.training.processes import Preemption
from alignlab.training.sharded import Unsharded
from alignlab.training.trainable import TrainableParts

if TYPE_CHECKING:
    from alignlab.training.stages import Session

log = logging.getLogger(__name__)
OWNED = (
    *("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("output_dir", "seed", "data_seed", "report_to", "save_strategy", "save_steps", "save_total_limit", "eval_strategy"),
    *("eval_steps", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "remove_unused_columns"),
    *("gradient_checkpointing", "activation_checkpointing", "use_cpu"),
    *("ddp_backend", "ddp_find_unused_parameters", "ddp_timeout", "local_rank"),
)
"""Arguments that the schedule, resuming or the ledger depend on, or that a policy cannot honour."""
MARK = "complete"
"""In a checkpoint; written when everything else in it has been written."""
PLAIN_LINES = 8
"""Lines of progress per stage where there is no terminal."""
PROGRESS = "progress.json"
"""In the run's folder: stage, step, steps and seconds left, written at most once a second."""


def check_extra(trainer: TrainerConfig) -> None:
    """Raises ConfigError for a key of `trainer.extra` that transformers.TrainingArguments does not have, or that is not for
    `extra`; and where it asks for FSDP or DeepSpeed and this run cannot have it."""
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    for key in trainer.extra:
        if key in OWNED or key.startswith("dataloader_"):
            raise ConfigError(f"trainer.extra.{key} would be ignored or break the plan of steps; alignlab sets it itself.")
        if key not in known:
            raise ConfigError(unknown("key of trainer.extra (transformers.TrainingArguments)", key, known))
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


def arguments(fit: FitConfig, session: Session, folder: Path, steps: int) -> TrainingArguments:
    """The Trainer's arguments, every number from a config."""
    trainer = session.trainer
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
        save_total_limit=trainer.keep_checkpoints,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=session.device == "cpu",
    )
    made = TrainingArguments(**{**given, **trainer.extra})
    if made.n_gpu > 1:
        made._n_gpu = 1  # several devices mean several processes; the Trainer would wrap the model in DataParallel
    return made


def mark(checkpoint: Path) -> None:
    """Declares a checkpoint complete; called last."""
    (checkpoint / MARK).touch()


def latest(stage_folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None. A kill while saving leaves a folder without the mark."""
    complete = [folder for folder in stage_folder.glob("checkpoint-*") if (folder / MARK).is_file()]
    return max(complete, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class Step(nn.Module):
    """Policy and objective as one module, so that what wraps the model (DDP, FSDP) sees every pass of the objective."""

    def __init__(self, policy: Policy, objective: Objective) -> None:
        super().__init__()
        self.model = policy.model
        self._no_split_modules = getattr(policy.backbone.model, "_no_split_modules", None)  # FSDP: the blocks
        self.policy = policy
        self.objective = objective

    def forward(self, batch: Batch) -> Loss:
        """The objective's loss on one batch."""
        return self.objective(self.policy, batch)


class FitTrainer(Trainer):
    """Losses are parts of their step and add up, so nothing is divided by the number of accumulated batches, or of processes.

    The micro-batches of a step are dealt out to the processes in turn, the same number to each.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        step: Step,
        stage: str,
        parts: TrainableParts,
        session: Session,
        batches: Any,
        args: TrainingArguments,
    ) -> None:
        self._step, self._stage, self._parts, self._session = step, stage, parts, session
        self._names = {id(parameter): name for name, parameter in step.named_parameters()}  # sharding replaces parameters
        self._metrics: dict[str, Tensor] = {}
        self._logged_at = 0
        self._progress = ShowProgress(stage, session.ledger)
        callbacks = [*([self._progress] if processes.is_main_process() else []), SaveAndLeave(session.preemption)]
        self._unsharded = Unsharded(step) if args.fsdp else None
        callbacks += [self._unsharded] if self._unsharded else []
        super().__init__(model=step, args=args, train_dataset=batches, data_collator=_first, callbacks=callbacks)
        self.remove_callback(PrinterCallback)

    def fit(self) -> None:
        """Trains from the last complete checkpoint, or from the start."""
        checkpoint = processes.by_main_process(lambda: latest(self._folder))
        if checkpoint:
            log.info("%s: resumed from %s", self._stage, checkpoint.name)
            self._parts.load(checkpoint)
            self._logged_at = _step_of(checkpoint)
        try:
            with self._session.preemption.between_steps():
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if self._unsharded:
                self._unsharded.end()
        finally:
            self._progress.close()

    def get_train_dataloader(self) -> Any:
        """Micro-batches in the order they were planned; nothing shuffles them again, and process r of n gets every n-th."""
        loader = torch.utils.data.DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_first)  # type: ignore[arg-type, var-annotated]
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's own, its groups made anew: for each part one that decays, and one of biases and norms that does not."""
        if self.optimizer is not None:
            return self.optimizer
        made: torch.optim.Optimizer = super().create_optimizer(model)
        made.param_groups = []
        for group in self._param_groups(model or self._step):
            made.add_param_group(group)
        self._rates = [group["lr"] for group in made.param_groups]
        return made

    def _param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Rate and decay of each part, those at the stage's rate first; every learned parameter is in exactly one group."""
        named, decaying = dict(model.named_parameters()), set(self.get_decay_parameter_names(model))
        groups: list[dict[str, Any]] = []
        for part in sorted(self._parts.learned, key=lambda part: part.settings.learning_rate is not None):
            own, names = part.settings, [self._names[id(parameter)] for parameter in part.parameters]
            rate = self.args.learning_rate if own.learning_rate is None else own.learning_rate
            decay = self.args.weight_decay if own.weight_decay is None else own.weight_decay
            for weight_decay, decays in ((decay, True), (0.0, False)):
                parameters = [named[name] for name in names if (name in decaying) == decays]
                if parameters:
                    groups.append({"params": parameters, "lr": rate, "weight_decay": weight_decay})
        return groups

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on the policy's device."""
        return {"batch": inputs["batch"].to(self._step.policy.backbone.device)}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        """The objective; raises DivergedError before a loss that is not finite reaches the weights."""
        loss: Loss = model(**inputs)
        # All processes stop at the same batch: one that stopped alone would leave the others waiting for its gradients.
        for number, rows in processes.gathered((loss.value.item(), inputs["batch"].rows[:3])):
            if not math.isfinite(number):
                where = f"the loss is {number} at step {self.state.global_step + 1}"
                raise self._diverged(where, f" or look at the rows {', '.join(rows)}")
        if self.state.global_step == 0:
            check_first_loss(self._stage, self._step.objective, self._step.policy, loss, inputs["batch"])
        for name, value in loss.metrics.items():
            self._metrics[name] = self._metrics.get(name, torch.zeros_like(value)) + value
        return loss.value * processes.count()  # gradients are averaged over processes, and these are parts of a sum

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Loss, rate, gradient norm and the objective's own metrics (means over the steps since the last line)."""
        if "loss" in logs:
            steps = max(1, self.state.global_step - self._logged_at)
            self._logged_at = self.state.global_step
            summed = processes.summed({name: value.item() for name, value in self._metrics.items()})
            self._metrics.clear()
            own = {name: value / steps for name, value in summed.items()}
            # All rates follow one schedule, and the optimiser's own have moved on to the next step already.
            done = logs["learning_rate"] / self._rates[0]
            for part in self._parts.learned:
                if part.settings.learning_rate is not None:
                    own[f"{part.name}_learning_rate"] = part.settings.learning_rate * done
            self._session.log(self._stage, self.state.global_step, {**logs, **own})
        super().log(logs, start_time)

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """What the stage trains, and no frozen weight (T6)."""
        with self._unsharded.whole() if self._unsharded else nullcontext():
            # A finite loss can have an endless gradient; such weights must not become the last good checkpoint.
            if not all(bool(parameter.isfinite().all()) for parameter in self._parts.parameters()):
                raise self._diverged(f"weights are no longer finite at step {self.state.global_step}")
            if processes.is_main_process():
                self._parts.save(Path(output_dir) if output_dir else self._folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        processes.by_main_process(lambda: mark(self._folder / f"checkpoint-{self.state.global_step}"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: `fit` has read what the stage trains, before anything wrapped it."""

    def _diverged(self, what: str, also: str = "") -> DivergedError:
        kept = latest(self._folder)
        return DivergedError(
            f"stage {self._stage}: {what}; the last good checkpoint is {kept.name if kept else 'the start'}."
            f" Lower the learning rate{also}."
        )


def _first(items: list[Any]) -> Any:
    """A planned micro-batch is one item of the data set."""
    return items[0]


class SaveAndLeave(TrainerCallback):
    """Makes a Trainer save at the end of the step in which a signal came, and leave when that is on disk.

    All processes of a training leave at the same step, whichever of them got the signal.
    """

    def __init__(self, preemption: Preemption) -> None:
        self._preemption = preemption
        self._leaves = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asks for a checkpoint of this very step."""
        self._leaves = any(processes.gathered(self._preemption.requested))
        control.should_save = control.should_save or self._leaves

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leaves: the checkpoint is complete."""
        if self._leaves:
            self._preemption.leave()


class ShowProgress(TrainerCallback):
    """Loss and time left of one stage: a bar in a terminal, else plain lines; and in the ledger, for other processes."""

    def __init__(self, stage: str, ledger: Ledger) -> None:
        self._stage, self._ledger = stage, ledger
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._written, self._next = 0.0, 0
        self._begun = (0.0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar, at the step that training resumes from."""
        self._begun = (time.monotonic(), state.global_step)
        self._next = state.global_step + max(1, int(state.max_steps) // PLAIN_LINES)
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._bar.add_task(self._stage, total=state.max_steps, completed=state.global_step)
        self._write(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Moves the bar, and writes down the step."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step)
        if time.monotonic() - self._written >= 1 or state.global_step == state.max_steps:
            self._write(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Shows the loss of the step that has just been made; without a terminal, about every eighth of the way."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=f"{self._stage} loss {loss:.4f}")
        elif state.global_step >= self._next:
            self._next = state.global_step + max(1, int(state.max_steps) // PLAIN_LINES)
            left = self._seconds_left(state) or 0.0
            log.info("%s: step %d/%d, loss %.4f, %.0f s left", self._stage, state.global_step, state.max_steps, loss, left)

    def _write(self, state: Any) -> None:
        if state.is_world_process_zero:
            self._written = time.monotonic()
            left = self._seconds_left(state)
            content = {"stage": self._stage, "step": state.global_step, "steps": state.max_steps, "seconds_left": left}
            self._ledger.write(PROGRESS, content)

    def _seconds_left(self, state: Any) -> float | None:
        """By the mean of this process's steps; None before the first."""
        begun, first = self._begun
        made = state.global_step - first
        return (time.monotonic() - begun) / made * (state.max_steps - state.global_step) if made else None

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Closes the bar and removes the file; also after an error, where on_train_end is not called."""
        (self._ledger.folder / PROGRESS).unlink(missing_ok=True)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
