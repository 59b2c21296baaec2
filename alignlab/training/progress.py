"""How a stage shows where it is: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from alignlab.tracking.ledger import Ledger

log = logging.getLogger(__name__)
PLAIN_LINES = 8
"""Lines per stage where there is no terminal."""
FILE = "progress.json"
"""In the run's folder: stage, step, steps and seconds left, written at most once a second."""


class ShowProgress(TrainerCallback):
    """Loss and time left of one stage; in the ledger too, for whoever looks from elsewhere."""

    def __init__(self, stage: str, ledger: Ledger) -> None:
        self._stage = stage
        self._ledger = ledger
        self._written = 0.0
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._next = 0
        self._begun = (0.0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar, at the step that training resumes from."""
        self._begun = (time.monotonic(), state.global_step)
        self._next = state.global_step + self._interval(state)
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
            self._next = state.global_step + self._interval(state)
            left = self._seconds_left(state) or 0.0
            log.info("%s: step %d/%d, loss %.4f, %.0f s left", self._stage, state.global_step, state.max_steps, loss, left)

    def _write(self, state: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._written = time.monotonic()
        left = self._seconds_left(state)
        content = {"stage": self._stage, "step": state.global_step, "steps": state.max_steps, "seconds_left": left}
        self._ledger.write(FILE, content)

    def _seconds_left(self, state: Any) -> float | None:
        """By the mean of this process's steps; None before the first."""
        begun, first = self._begun
        made = state.global_step - first
        return (time.monotonic() - begun) / made * (state.max_steps - state.global_step) if made else None

    def _interval(self, state: Any) -> int:
        return max(1, int(state.max_steps) // PLAIN_LINES)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Gives the terminal back, and takes the step away; also after an error, where on_train_end is not called."""
        (self._ledger.folder / FILE).unlink(missing_ok=True)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
