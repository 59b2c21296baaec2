"""Several processes that train one run together, as torchrun starts them: who leads, and what they tell each other.

Process 0 leads: it alone writes, and after the last stage it goes on alone. Where there is one process, it leads, and nothing
here costs anything.
"""

from __future__ import annotations

import os
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
"""How long a process waits for what another is at; the launcher ends those that wait for one that has died."""
END_SECONDS = 60
"""How long a process that fails as the main process does waits to be ended, so that the main process can say why."""
_group: list[Any] = []
"""What words go through while the processes are joined; another than the gradients', which have a time limit."""


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
    """Inside, until `disband`, the processes hear each other. `device`: auto | cpu | cuda.

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
    """From here on the main process is alone, and may take as long as it likes."""
    if _group:
        import torch.distributed as dist

        meet()
        _group.clear()
        dist.destroy_process_group()


def meet() -> None:
    """Waits until all have come here."""
    gathered(None)


def gathered(word: T) -> list[T]:
    """What each process says, in their order, to all of them."""
    if not _group:
        return [word]
    import torch.distributed as dist

    words: list[Any] = [None] * count()
    try:
        dist.all_gather_object(words, word, group=_group[0])
    except RuntimeError as error:
        raise ProcessError("another process of this run has ended; look at what it said.") from error
    return words


def by_main_process(action: Callable[[], T]) -> T:
    """When all have come here, the main process acts; when it is done, all get what came of it."""
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
    """Raises ConfigError where the environment tells of more processes than were started."""
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
    """The ledger of a process that is a worker: it reads."""

    def write(self, name: str, content: Mapping[str, Any]) -> Any:
        """Nothing: the main process writes the same."""
        return self.folder / name

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: the main process writes them, added up."""


def failed(ledger: Ledger, error: BaseException) -> None:
    """Writes down why this process failed. The first to fail has the word: raises ProcessError where another has ended the
    run, since all that has come of it here is a broken connection."""
    told = ledger.read("status.json") or {}
    if count() > 1 and told.get("state") != "running":
        raise ProcessError(f"another process of this run has ended it ({told.get('error', told.get('state'))}).") from error
    ledger.status("failed", error=f"{type(error).__name__}: {error}")


def wait_for_the_end() -> None:
    """For a process whose error is the main process's too: if it were gone first, the launcher would end the main process
    before it could say what is wrong."""
    time.sleep(END_SECONDS)
