"""The one transformers.Trainer of the project, with its checkpoints and callbacks; it trains any objective."""

from __future__ import annotations

import logging
import math
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, SchedulerType, Trainer, TrainerCallback, TrainingArguments

from alignlab.errors import DivergedError, RunFolderError
from alignlab.files import damage, seal
from alignlab.models.policy import Policy
from alignlab.records import Batch, Loss
from alignlab.tracking.ledger import Ledger
from alignlab.training import processes
from alignlab.training.objectives import Objective, check_first_loss
from alignlab.training.processes import Preemption
from alignlab.training.sharded import Unsharded
from alignlab.training.trainable import TrainableParts

if TYPE_CHECKING:
    from alignlab.training.stages import Session

log = logging.getLogger(__name__)
MARK = "complete"
"""In a checkpoint; written when everything else in it has been written."""
RESUMED_FROM = ("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*.pth")
"""Files and folders of a checkpoint by which a training is resumed; weights are not among them."""
PLAIN_LINES = 8
"""Lines of progress per stage where there is no terminal."""
MEASURED_SECONDS = 3
"""After which a stage says how long its other steps will take, if it is longer than that."""
PROGRESS = "progress.json"
"""In the run's folder: stage, step, steps and seconds left, written at most once a second."""


def mark(checkpoint: Path) -> None:
    """Declares a checkpoint complete, called last: the mark lists its files, each with its size and a checksum."""
    seal(checkpoint, MARK, {})


def latest(stage_folder: Path) -> Path | None:
    """The checkpoint with the highest step among those that are whole, or None. A kill while saving leaves a folder without the
    mark; one whose files are not those that the mark lists is named, and passed over."""
    complete = [folder for folder in stage_folder.glob("checkpoint-*") if (folder / MARK).is_file()]
    for checkpoint in sorted(complete, key=_step_of, reverse=True):
        wrong = damage(checkpoint, MARK)
        if not wrong:
            return checkpoint
        log.warning("%s is damaged (%s); the one before it is taken", checkpoint, wrong)
    return None


def drop_optimizers(stage_folder: Path) -> None:
    """Removes what only a resumed training needs from the checkpoints of a finished stage, which then are complete no more."""
    for checkpoint in stage_folder.glob("checkpoint-*"):
        (checkpoint / MARK).unlink(missing_ok=True)
        for pattern in RESUMED_FROM:
            for file in checkpoint.glob(pattern):
                shutil.rmtree(file) if file.is_dir() else file.unlink()


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
        self._progress = ShowProgress(stage, session.ledger, session.paces)
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

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's own, but its warm-up begins at 1 / steps of the rate, where a first step at 0 would be for nothing."""
        made: Any = super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        if warmup and self.args.lr_scheduler_type != SchedulerType.CONSTANT:
            rising: list[Callable[[int], float]] = [partial(_rising, warmup, factor) for factor in made.lr_lambdas]
            self.lr_scheduler = made = LambdaLR(made.optimizer, rising)
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
                raise self._diverged(where, self.state.global_step, f"look at the rows {', '.join(rows)}")
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
                step = self.state.global_step
                raise self._diverged(f"weights are no longer finite at step {step}", step)
            if processes.is_main_process():
                self._parts.save(Path(output_dir) if output_dir else self._folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        processes.by_main_process(lambda: mark(self._folder / f"checkpoint-{self.state.global_step}"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: `fit` has read what the stage trains, before anything wrapped it."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _diverged(self, what: str, updates: int, also: str = "") -> DivergedError:
        """`updates`: how many were made before; what they were made by may be the cause, and is named with its keys."""
        kept, key = latest(self._folder), f"method.{self._stage}"
        good = kept.name if kept else "the start"
        if not updates:
            advice = f"no weight had been updated, so the rates are not the cause: {also}, or at model.dtype and the weights"
        else:
            own = {part.name: part.settings.learning_rate for part in self._parts.learned if part.settings.learning_rate}
            apart = "".join(f", the {name}'s own is {rate:g}" for name, rate in own.items())
            unclipped = "" if self.args.max_grad_norm else f", set {key}.max_grad_norm=1.0 (now 0: gradients are not clipped)"
            advice = (
                f"the learning rate was {self._get_learning_rate():g} ({key}.learning_rate={self.args.learning_rate:g}{apart});"
                f" lower it{unclipped}{f', or {also}' if also else ''}"
            )
        return DivergedError(f"stage {self._stage}: {what}; the last good checkpoint is {good}; {advice}.")


@contextmanager
def _readable(checkpoint: str | None) -> Iterator[None]:
    """Raises RunFolderError for a state that cannot be read, or that holds more than numbers: unpickling it would run code."""
    try:
        yield
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        first = str(error).partition("\n")[0]
        raise RunFolderError(
            f"{checkpoint} cannot be resumed from ({first}); remove it, and the one before it is taken."
        ) from error


def _rising(warmup: int, behind: Callable[[int], float], step: int) -> float:
    """The share of the rate at a step, counted from 0: (step + 1) / warmup in the warm-up, then what the schedule has."""
    return (step + 1) / warmup if step < warmup else behind(step)


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
    """Loss and time left of one stage: a bar in a terminal, else plain lines; and in the ledger, for other processes. Seconds
    of a step go into `paces` at the end."""

    def __init__(self, stage: str, ledger: Ledger, paces: dict[str, float]) -> None:
        self._stage, self._ledger, self._paces = stage, ledger, paces
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._written, self._next = 0.0, 0
        self._begun = (0.0, 0)
        self._warm = (0.0, 0)
        self._told = False

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
        if not self._warm[1]:
            self._warm = (time.monotonic(), state.global_step)  # the first step of a process takes longer than the others
        elif not self._told and time.monotonic() - self._begun[0] >= MEASURED_SECONDS:
            self._told = True
            pace, left = self._pace(state), state.max_steps - state.global_step
            if self._bar is None and pace * left > MEASURED_SECONDS:
                log.info("%s: %.2g s a step here, so about %.0f s for the other %d", self._stage, pace, pace * left, left)

    def _pace(self, state: Any) -> float:
        """Seconds of a step of this process, its first one left out where there are others."""
        since, first = self._warm if state.global_step > self._warm[1] else self._begun
        return (time.monotonic() - since) / max(1, state.global_step - first)

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
            self._ledger.write(PROGRESS, content, durable=False)

    def _seconds_left(self, state: Any) -> float | None:
        """By the mean of this process's steps; None before the first."""
        begun, first = self._begun
        made = state.global_step - first
        return (time.monotonic() - begun) / made * (state.max_steps - state.global_step) if made else None

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar, and keeps the pace."""
        if state.global_step > self._begun[1]:
            self._paces[self._stage] = self._pace(state)
        self.close()

    def close(self) -> None:
        """Closes the bar and removes the file; also after an error, where on_train_end is not called."""
        (self._ledger.folder / PROGRESS).unlink(missing_ok=True)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
