"""What a stage measures while it trains, on rows that it does not train on; measuring does not change the training."""

from __future__ import annotations

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
from alignlab.training.config import ValidationConfig

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


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, passes have no gradient and no dropout. Afterwards the modes of all modules and every random generator are what
    they were, so that training continues as if nothing had been measured."""
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
