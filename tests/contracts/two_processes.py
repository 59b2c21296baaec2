"""What two processes do together in `test_processes`; started by torchrun. Each leaves what it saw in FOLDER/RANK.json."""

from __future__ import annotations

import json
import math
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from alignlab.config import parse
from alignlab.errors import DivergedError
from alignlab.records import Batch, Loss
from alignlab.running import open_session
from alignlab.training import processes
from alignlab.training.objectives import nll
from alignlab.training.sharded import Unsharded
from alignlab.training.trainer import FitTrainer, Step
from run import run
from tests.conftest import backbone
from tests.contracts.test_methods import composed, tensors
from tests.unit.conftest import attached, batch_of, learned

RATE = 0.1
KINDS = ("red", "lora", "full")


class StoppedError(Exception):
    """Somebody pulled the plug."""


def resumed(folder: Path) -> dict[str, Any]:
    """Four steps at once, and four of which the third fails and is done again: are the bits the same?"""
    configs = [composed(folder / name, "red", "evaluation=off", "trainer.checkpoint_every_steps=2", steps=4) for name in "ab"]
    run(configs[0])
    real, calls = FitTrainer.compute_loss, []

    def stops(self: FitTrainer, *given: Any, **named: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise StoppedError
        return real(self, *given, **named)

    FitTrainer.compute_loss = stops  # type: ignore[method-assign]
    try:
        run(configs[1])
    except Exception as error:
        stopped = type(error).__name__
    finally:
        FitTrainer.compute_loss = real  # type: ignore[method-assign]
    processes.meet()
    run(configs[1])
    first, second = (tensors(folder / name / "run" / "stages" / "fit" / "result") for name in "ab")
    same = first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    return {"stopped": stopped, "calls": len(calls), "same_bits": same}


def diverged(folder: Path) -> str:
    """What each process says when the loss of one of them is no number."""
    real = Step.forward

    def spoilt(self: Step, batch: Batch) -> Loss:
        loss = real(self, batch)
        return replace(loss, value=loss.value * (math.nan if processes.rank() == 1 else 1.0))

    Step.forward = spoilt  # type: ignore[method-assign]
    try:
        run(composed(folder, "red", "evaluation=off"))
    except DivergedError as error:
        return str(error)
    finally:
        Step.forward = real  # type: ignore[method-assign]
    return "went on"


def sharded(kind: str, mesh: DeviceMesh) -> dict[str, Any]:
    """A step of plain descent with the weights spread over both processes, beside the same step unsharded."""
    policy, plain = attached(kind, backbone("llama")), attached(kind, backbone("llama"))
    batch, kept = batch_of(policy.backbone), learned(policy)
    with plain.only(learned(plain)):
        expected = nll(plain, batch).value
        expected.backward()
    with policy.only(kept):
        step = Step(policy, nll)
        unsharded = Unsharded(step)
        shard(step, mesh)
        unsharded.spread()
        parameters = list(step.parameters())
        own = sum(each.to_local().numel() for each in parameters if isinstance(each, DTensor))
        share = own / sum(each.numel() for each in parameters)
        loss = step(batch).value
        loss.backward()
        torch.optim.SGD([each for each in parameters if each.requires_grad], lr=RATE).step()
        with unsharded.whole():
            gap = max(float((one - other + RATE * other.grad).abs().max()) for one, other in zip(kept, learned(plain)))
        unsharded.end()
        after = float(nll(policy, batch).value)
        shard(step, mesh)  # as the next stage would
        again = float(step(batch).value)
    return {"loss": float(loss), "expected": float(expected), "share": share, "gap": gap, "after": after, "again": again}


def shard(step: Step, mesh: DeviceMesh) -> None:
    """As accelerate does it: each block, then the rest."""
    for module in [each for each in step.modules() if type(each).__name__ in (step._no_split_modules or ())]:
        fully_shard(module, mesh=mesh)
    fully_shard(step, mesh=mesh)


def fails_alone(folder: Path) -> None:
    """Process 1 meets an error of its own; process 0 waits for it."""
    with open_session(parse(composed(folder, "red"))):
        if processes.rank() == 1:
            raise MemoryError("no room on this GPU")
        processes.meet()


def main(folder: Path) -> None:
    with processes.joined("cpu"):
        # The processes stay together from scene to scene.
        processes.joined, processes.disband = (lambda _device: nullcontext()), (lambda: None)  # type: ignore[assignment]
        mesh = init_device_mesh("cpu", (2,))
        seen = {
            "resumed": resumed(folder / "resumed"),
            "diverged": diverged(folder / "diverged"),
            "sharded": {kind: sharded(kind, mesh) for kind in KINDS},
        }
        (folder / f"{processes.rank()}.json").write_text(json.dumps(seen), encoding="utf-8")
        fails_alone(folder / "alone")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
