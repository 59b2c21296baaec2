"""The one transformers.Trainer of the project: trains any objective, checkpoints what it trains, reports to the session."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from alignlab.errors import DivergedError
from alignlab.models.policy import Policy
from alignlab.records import Batch, Loss
from alignlab.tracking.ledger import Ledger
from alignlab.training import processes
from alignlab.training.checkpoint import latest, mark
from alignlab.training.config import ValidationConfig
from alignlab.training.first_step import check_first_loss
from alignlab.training.objectives import Objective
from alignlab.training.preemption import SaveAndLeave
from alignlab.training.progress import ShowProgress
from alignlab.training.session import Session
from alignlab.training.sharded import Unsharded
from alignlab.training.trainable import TrainableParts
from alignlab.training.validation import BEST, MeasureAt, Validation, undisturbed

log = logging.getLogger(__name__)


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
        return self.objective(self.policy, batch.to(self.policy.backbone.device))


class FitTrainer(Trainer):
    """Losses are shares of their step and add up, so nothing is divided by the number of accumulated batches, or of processes.

    Of the micro-batches of a step, taken in turn, every process makes as many.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        step: Step,
        stage: str,
        parts: TrainableParts,
        session: Session,
        steps: Any,
        args: TrainingArguments,
        validation: Validation | None = None,
        measured_at: frozenset[int] = frozenset(),
    ) -> None:
        self._step, self._stage, self._parts, self._session = step, stage, parts, session
        self._names = {id(parameter): name for name, parameter in step.named_parameters()}  # sharding replaces parameters
        self._validation = validation
        self._metrics: dict[str, Tensor] = {}
        self._logged_at = 0
        self._progress = ShowProgress(stage, session.ledger)
        callbacks = [*([self._progress] if processes.is_main_process() else []), SaveAndLeave(session.preemption)]
        self._unsharded = Unsharded(step) if args.fsdp else None
        callbacks += [self._unsharded] if self._unsharded else []
        callbacks += [MeasureAt(measured_at)] if validation else []
        super().__init__(model=step, args=args, train_dataset=steps, data_collator=_first, callbacks=callbacks)
        self.remove_callback(PrinterCallback)

    def fit(self) -> None:
        """Trains from the last complete checkpoint, or from the start; ends with the best, where that is asked for."""
        checkpoint = processes.by_main_process(lambda: latest(Path(str(self.args.output_dir))))
        if checkpoint:
            log.info("%s: goes on from %s", self._stage, checkpoint.name)
            self._parts.load(checkpoint)
            self._logged_at = int(checkpoint.name.rpartition("-")[2])
        try:
            with self._session.preemption.between_steps():
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if self._unsharded:
                self._unsharded.end()
        finally:
            self._progress.close()
        if self._validation and self._validation.config.keep_best:
            self._end_with_best(self._validation.config)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The numbers of the validation's suite, measured by the process that leads; logged as stage/validation/metric."""
        assert self._validation is not None
        measure, policy = self._validation.measure, self._step.policy
        with undisturbed(self._step):
            found = processes.by_main_process(lambda: dict(measure(policy)))
        self._session.log(self._stage, self.state.global_step, {f"validation/{name}": value for name, value in found.items()})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        watched = self._validation.config.metric
        # A number that was not found is no candidate: transformers compares, and nothing is better than a NaN or worse.
        return {f"eval_{watched}": found.get(watched, math.nan)}

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
        return loss.value * processes.count()  # gradients are averaged over processes, and these are shares of a sum

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Loss, rate, gradient norm and the objective's own metrics (means over the steps since the last line)."""
        if "loss" in logs:
            steps = max(1, self.state.global_step - self._logged_at)
            self._logged_at = self.state.global_step
            own = {name: value / steps for name, value in self._summed().items()}
            # All rates follow one schedule, and the optimiser's own have moved on to the next step already.
            done = logs["learning_rate"] / self._rates[0]
            for part in self._parts.learned:
                if part.settings.learning_rate is not None:
                    own[f"{part.name}_learning_rate"] = part.settings.learning_rate * done
            self._session.log(self._stage, self.state.global_step, {**logs, **own})
        super().log(logs, start_time)

    def get_train_dataloader(self) -> Any:
        """Micro-batches in the order they were planned; nothing shuffles them again, and process r of n gets every n-th."""
        loader = torch.utils.data.DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_first)  # type: ignore[arg-type, var-annotated]
        return self.accelerator.prepare(loader)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """What the stage trains, and no frozen weight (T6)."""
        with self._unsharded.whole() if self._unsharded else nullcontext():
            # A finite loss can have an endless gradient; such weights must not become the last good checkpoint.
            if not all(bool(parameter.isfinite().all()) for parameter in self._parts.parameters()):
                raise self._diverged(f"weights are no longer finite at step {self.state.global_step}")
            if processes.is_main_process():
                self._parts.save(Path(str(output_dir or self.args.output_dir)))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Of equal numbers the earliest is the best. A new best is saved, since the training may end with it."""
        best: bool = super()._determine_best_metric(metrics, trial)
        self.control.should_save = self.control.should_save or best
        return best

    def _end_with_best(self, config: ValidationConfig) -> None:
        """Puts the weights of the best step back, and writes down which it was."""
        folder, step = Path(str(self.args.output_dir)), self.state.best_global_step
        if not step:
            log.warning("%s: %s was never a number, so the stage ends with its last weights", self._stage, config.metric)
            return
        self._parts.load(folder / f"checkpoint-{step}")
        value = float(self.state.best_metric or 0.0)
        log.info("%s: ends with step %d, the best by %s/%s (%.4g)", self._stage, step, config.suite, config.metric, value)
        if processes.is_main_process():
            Ledger(folder).write(BEST, {"metric": f"{config.suite}/{config.metric}", "value": value, "step": step})

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        processes.by_main_process(lambda: mark(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: `fit` has read what the stage trains, before anything wrapped it."""

    def _summed(self) -> dict[str, float]:
        """The objective's metrics since they were last asked for, over all processes."""
        own = {name: value.item() for name, value in self._metrics.items()}
        self._metrics.clear()
        return processes.summed(own)

    def _diverged(self, what: str, also: str = "") -> DivergedError:
        kept = latest(Path(str(self.args.output_dir)))
        return DivergedError(
            f"stage {self._stage}: {what}; the last good checkpoint is {kept.name if kept else 'the start'}."
            f" Lower the learning rate{also}."
        )


def _first(items: list[Any]) -> Any:
    """A planned micro-batch is one item of the data set."""
    return items[0]
