"""The processes that train one run together, as torchrun starts them, and the signal that asks them to leave (`Preemption`).

Process 0 is the main process: it alone writes, and after the last stage it continues alone. With a single process nothing here
costs anything.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from alignlab.errors import ConfigError, ProcessError
from alignlab.tracking.ledger import Ledger

T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""How long a process waits for another; the launcher ends those that wait for one that has died."""
END_SECONDS = 60
"""How long a worker that fails as the main process does waits to be ended, so that the main process can report the error."""
COME_AGAIN = 75
"""Exit status of a preempted job that no launcher re-queues (EX_TEMPFAIL): a script may run the same command again."""
NAMED_BY = "SUBMITIT_PREEMPT_SIGNAL"
"""Environment variable with the signal that asks a job to leave, without its SIG."""
_group: list[Any] = []
"""The process group of objects, while the processes are joined; that of the gradients has a shorter time limit."""


def count() -> int:
    """How many processes train this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Inside, until `disband`, the processes are one group. `device`: auto | cpu | cuda.

    Raises ConfigError where a launcher has promised processes that are not there, or that have no GPU.
    """
    check_launch(os.environ)
    if count() == 1:
        yield
        return
    # Else every process says at length that DDP looked for unused parameters and found none, which depends on the batch.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch
    import torch.distributed as dist

    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if gpus:
        local = int(os.environ["LOCAL_RANK"])
        if local >= gpus:
            raise ConfigError(f"there are {gpus} GPUs here for {local + 1} processes; start one process per GPU.")
        torch.cuda.set_device(local)
    if not is_main_process():
        warnings.simplefilter("ignore")  # the main process's are the same
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    _group.append(dist.new_group(backend="gloo", timeout=PATIENCE))
    yield
    disband()


def disband() -> None:
    """From here on the main process is alone, and nothing waits for it."""
    if _group:
        import torch.distributed as dist

        meet()
        _group.clear()
        dist.destroy_process_group()


def meet() -> None:
    """Waits until all processes have come here."""
    gathered(None)


def gathered(own: T) -> list[T]:
    """The object of each process, by rank, in all of them."""
    if not _group:
        return [own]
    import torch.distributed as dist

    objects: list[Any] = [None] * count()
    try:
        dist.all_gather_object(objects, own, group=_group[0])
    except RuntimeError as error:
        raise ProcessError("another process of this run has ended; look at what it said.") from error
    return objects


def by_main_process(action: Callable[[], T]) -> T:
    """When all have come here, the main process acts; when it is done, all get its result."""
    meet()
    return gathered(action() if is_main_process() else None)[0]  # type: ignore[return-value]


def main_process_first(action: Callable[[], T]) -> T:
    """All act, the main process before the others, so that they find what it has left on disk."""
    if is_main_process():
        done = action()
        meet()
        return done
    meet()
    return action()


def summed(own: Mapping[str, float]) -> dict[str, float]:
    """Numbers by name, added up over the processes; a process may lack some."""
    total: dict[str, float] = {}
    for numbers in gathered(dict(own)):
        for name, number in numbers.items():
            total[name] = total.get(name, 0.0) + number
    return total


def check_launch(environment: Mapping[str, str]) -> None:
    """Raises ConfigError where the environment names more processes than were started."""
    several = int(environment.get("WORLD_SIZE", "1")) > 1
    missing = [key for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if key not in environment]
    if several and missing:
        raise ConfigError(
            f"WORLD_SIZE={environment['WORLD_SIZE']} asks for several processes, but {missing[0]} is not set; start them with"
            " torchrun --nproc_per_node N run.py ..., or unset WORLD_SIZE."
        )
    # `accelerate launch` names a meeting point for several processes, and on a CPU starts one.
    if "WORLD_SIZE" not in environment and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= environment.keys():
        raise ConfigError(
            "accelerate launch was asked for several processes and has started one; start them with"
            " torchrun --nproc_per_node N run.py ..."
        )


def refuse_sweep() -> None:
    """Raises ConfigError where several processes would each run a whole sweep."""
    if count() > 1:
        raise ConfigError(
            "torchrun starts the processes of one run, and this is a sweep; start each of its jobs with torchrun"
            " (plan=true lists them), or the sweep without it."
        )


class SilentLedger(Ledger):
    """The ledger of a worker: it reads, and leaves writing to the main process."""

    def write(self, name: str, content: Mapping[str, Any], indent: int | None = 2) -> Any:
        """Nothing: the main process writes the same."""
        return self.folder / name

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: the main process writes them, added up."""


def failed(ledger: Ledger, error: BaseException) -> None:
    """Writes down why this process failed. Raises ProcessError where another process has ended the run before: the error here
    is then a broken connection, which explains nothing."""
    told = ledger.read("status.json") or {}
    if count() > 1 and told.get("state") != "running":
        raise ProcessError(f"another process of this run has ended it ({told.get('error', told.get('state'))}).") from error
    ledger.status("failed", error=f"{type(error).__name__}: {error}")


def wait_for_the_end() -> None:
    """For a worker whose error is the main process's too: if it ended first, the launcher would end the main process before it
    could say what is wrong."""
    time.sleep(END_SECONDS)


class Preemption:
    """Whether this process was asked to leave by a signal, and what it does then.

    In training it leaves with the checkpoint of the step it is in, anywhere else at once. It leaves by SystemExit, so that
    everything that is open is closed on the way.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._in_training = False
        self.left = False
        """Whether `heeded` has been left because of it."""

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._asked is not None

    @contextmanager
    def heeded(self, say: Callable[[], None]) -> Iterator[None]:
        """Inside, signals are heeded; afterwards the earlier handlers are back.

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
            self.left = True
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
        """Raises SystemExit; also in a process that got no signal itself, because another one did."""
        self._asked = self._asked or _signals()[0]
        sys.exit(COME_AGAIN)

    def _ask(self, number: int, _: Any) -> None:
        if self.left:
            return
        self._asked = signal.Signals(number)
        if not self._in_training:
            self.leave()


def _hand_on(number: signal.Signals, launcher: Any) -> None:
    """Calls the launcher's handler; returns where it does not end the process."""
    if not callable(launcher):
        return
    try:
        launcher(number, None)
    except subprocess.CalledProcessError as error:
        # SLURM ends all processes of a job that goes back into its queue, the `scontrol requeue` that asked for it among them.
        if error.returncode >= 0:
            raise


def _signals() -> tuple[signal.Signals, ...]:
    """Those that ask a job to leave. submitit ignores SIGTERM, since SLURM sends it along; so alignlab does there."""
    name = os.environ.get(NAMED_BY, "USR2")
    number = signal.Signals.__members__.get(f"SIG{name}")
    if number is None:
        raise ConfigError(f"{NAMED_BY}={name} is not a signal here; give its name without SIG, such as USR2.")
    return (number,) if "SUBMITIT_EXECUTOR" in os.environ else (number, signal.SIGTERM)
