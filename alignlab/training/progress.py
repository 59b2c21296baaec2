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
        self._loss = float("nan")
        self._begun = (0.0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar, at the step that training resumes from."""
        self._begun = (time.monotonic(), state.global_step)
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._bar.add_task(self._stage, total=state.max_steps, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Remembers the latest loss."""
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Moves the bar, or writes a line at every eighth of the way."""
        if self._bar is not None:
            text = f"{self._stage} loss {self._loss:.4f}"
            self._bar.update(self._bar.task_ids[0], completed=state.global_step, description=text)
        elif state.global_step % max(1, state.max_steps // PLAIN_LINES) == 0:
            begun, first = self._begun
            left = (time.monotonic() - begun) / (state.global_step - first) * (state.max_steps - state.global_step)
            log.info(
                "%s: step %d/%d, loss %.4f, %.0f s left",
                self._stage,
                state.global_step,
                state.max_steps,
                self._loss,
                left,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Gives the terminal back; also after an error, where on_train_end is not called."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
