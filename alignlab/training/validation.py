"""What a stage measures while it trains, on rows that it does not train on; measuring does not change the training."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from alignlab.models.policy import Policy
from alignlab.tracking.ledger import Ledger
from alignlab.training import processes
from alignlab.training.config import ValidationConfig
from alignlab.training.trainer import FitTrainer

log = logging.getLogger(__name__)
BEST = "best.json"
"""In a stage's folder: which step it ended with, by which metric and value."""
Measure = Callable[[Policy], Mapping[str, float]]
"""The numbers of a suite for a policy as it is, by their names."""


@dataclass(frozen=True)
class Validation:
    """When a run's stages are measured, and by what."""

    config: ValidationConfig
    measure: Measure


class MeasureAt(TrainerCallback):
    """Makes a Trainer evaluate after these steps."""

    def __init__(self, steps: frozenset[int]) -> None:
        self._steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asks for it."""
        control.should_evaluate = control.should_evaluate or state.global_step in self._steps


class ValidatedTrainer(FitTrainer):
    """A FitTrainer that measures after the steps `measured_at`, and ends with the best weights where the config says so."""

    def __init__(self, *given: Any, validation: Validation, measured_at: frozenset[int]) -> None:
        super().__init__(*given)
        self._validation, config = validation, validation.config
        if config.keep_best:
            self.args.save_total_limit = int(self.args.save_total_limit or 0) + 1  # the best is kept beside the others
            self.args.metric_for_best_model, self.args.greater_is_better = config.metric, config.higher_is_better
        self.add_callback(MeasureAt(measured_at))

    def fit(self) -> None:
        """Trains, and puts the weights of the best step back where that is asked for."""
        super().fit()
        if self._validation.config.keep_best:
            self._end_with_best(self._validation.config)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The numbers of the validation's suite, measured by the main process; logged as stage/validation/metric."""
        measure, policy = self._validation.measure, self._step.policy
        with undisturbed(self._step):
            found = processes.by_main_process(lambda: dict(measure(policy)))
        self._session.log(self._stage, self.state.global_step, {f"validation/{name}": value for name, value in found.items()})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        watched = self._validation.config.metric
        # A number that was not found is no candidate: transformers compares, and nothing is better than a NaN or worse.
        return {f"eval_{watched}": found.get(watched, math.nan)}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Of equal numbers the earliest is the best. A new best is saved, since the training may end with it."""
        best: bool = super()._determine_best_metric(metrics, trial)
        self.control.should_save = self.control.should_save or best
        return best

    def _end_with_best(self, config: ValidationConfig) -> None:
        """Puts the weights of the best step back, and writes down which it was."""
        step = self.state.best_global_step
        if not step:
            log.warning("%s: %s was never a number, so the stage ends with its last weights", self._stage, config.metric)
            return
        self._parts.load(self._folder / f"checkpoint-{step}")
        value = float(self.state.best_metric or 0.0)
        log.info("%s: ends with step %d, the best by %s/%s (%.4g)", self._stage, step, config.suite, config.metric, value)
        if processes.is_main_process():
            Ledger(self._folder).write(BEST, {"metric": f"{config.suite}/{config.metric}", "value": value, "step": step})


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, passes have no gradient and no dropout. Afterwards the modes of all modules and every random generator are
    restored, so that training continues with the same bits."""
    modes = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            model.eval()
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, mode in modes:
            module.training = mode
