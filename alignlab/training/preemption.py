"""Preemption: a job that must leave ends its optimiser step, saves it, says so in its ledger, and hands the signal on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from alignlab.errors import ConfigError
from alignlab.training import processes

COME_AGAIN = 75
"""Exit status of a preempted job that no launcher re-queues (EX_TEMPFAIL): a script may run the same command again."""
NAMED_BY = "SUBMITIT_PREEMPT_SIGNAL"
"""Environment variable with the signal that asks a job to leave, without its SIG."""


class Preemption:
    """Whether this process was asked to leave, and what it does then.

    In training it leaves with the checkpoint of the step it is in, anywhere else at once. It leaves by SystemExit, so that
    everything that is open is closed on the way.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._in_training = False
        self._leaving = False

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._asked is not None

    @property
    def left(self) -> bool:
        """Whether `heeded` has been left because of it."""
        return self._leaving

    @contextmanager
    def heeded(self, say: Callable[[], None]) -> Iterator[None]:
        """Inside, signals are heeded; behind it, whoever heeded them before does so again.

        `say` is called on the way out, and then the handler that was there before: a launcher's puts the job back into its
        queue and exits. Only the main thread of a process can do this; in another, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in _signals()}
        try:
            yield
        except SystemExit:
            if self._asked is None:
                raise
            self._leaving = True
            say()
            _hand_on(self._asked, before[self._asked])
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Inside, a signal waits for `leave`; one that has come after the last step is heeded at the end."""
        self._in_training = True
        try:
            yield
        finally:
            self._in_training = False
        if self.requested:
            self.leave()

    def leave(self) -> None:
        """Raises SystemExit; in a process that got no signal itself, because another one did."""
        self._asked = self._asked or _signals()[0]
        sys.exit(COME_AGAIN)

    def _ask(self, number: int, _: Any) -> None:
        if self._leaving:
            return
        self._asked = signal.Signals(number)
        if not self._in_training:
            self.leave()


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


def _hand_on(number: signal.Signals, launcher: Any) -> None:
    """Returns where nobody ends the process."""
    if not callable(launcher):
        return
    try:
        launcher(number, None)
    except subprocess.CalledProcessError as error:
        # SLURM ends all processes of a job that goes back into its queue, the `scontrol requeue` that asked for it among them.
        if error.returncode >= 0:
            raise


def _signals() -> tuple[signal.Signals, ...]:
    """Those that ask a job to leave. submitit passes SIGTERM over, since SLURM sends it along; so it is not ours there."""
    name = os.environ.get(NAMED_BY, "USR2")
    number = signal.Signals.__members__.get(f"SIG{name}")
    if number is None:
        raise ConfigError(f"{NAMED_BY}={name} is not a signal here; give its name without SIG, such as USR2.")
    return (number,) if "SUBMITIT_EXECUTOR" in os.environ else (number, signal.SIGTERM)
