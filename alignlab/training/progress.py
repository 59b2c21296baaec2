"""How a stage shows where it is: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

log = logging.getLogger(__name__)
PLAIN_LINES = 8
"""Lines per stage where there is no terminal."""


class ShowProgress(TrainerCallback):
    """Loss and time left of one stage."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
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

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Shows the loss of the step that has just been made; without a terminal, about every eighth of the way."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=f"{self._stage} loss {loss:.4f}")
        elif state.global_step >= self._next:
            self._next = state.global_step + self._interval(state)
            begun, first = self._begun
            left = (time.monotonic() - begun) / max(1, state.global_step - first) * (state.max_steps - state.global_step)
            log.info("%s: step %d/%d, loss %.4f, %.0f s left", self._stage, state.global_step, state.max_steps, loss, left)

    def _interval(self, state: Any) -> int:
        return max(1, int(state.max_steps) // PLAIN_LINES)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Gives the terminal back; also after an error, where on_train_end is not called."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
