"""What a training step of each row of experiment=red/small costs: seconds of a CPU, and peak memory.

    python benchmarks/red_step.py paths.models=FOLDER paths.data=FOLDER [--task qnli] [--steps 10] [--rows red lora]

Each row runs in a process of its own, forked once everything is imported: the run's own policy, batches and loss, one thread,
AdamW. Seconds are those that the process had a CPU, the mean over the steps after the first. Memory is the peak above what was
resident before the model was loaded, weights included. Further words are overrides, as of run.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "experiments" / "red" / "small" / "rows"


def main(words: Sequence[str] | None = None) -> None:
    """Prints a line per row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="qnli")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", nargs="+", default=sorted(path.stem for path in ROWS.glob("*.yaml")))
    given, overrides = parser.parse_known_args(words)
    import alignlab.planning
    import alignlab.running  # noqa: F401  # before the forks

    print("row,parameters,seconds_per_step,peak_mib")
    for row in given.rows:
        found = apart(row, given.task, overrides, given.steps)
        print(f"{row},{found['parameters']},{found['seconds']:.3f},{found['peak_mib']:.0f}", flush=True)


def apart(row: str, task: str, overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """`measured`, in a child process."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, json.dumps(measured(row, task, overrides, steps)).encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with os.fdopen(ours) as answer:
        found: dict[str, Any] = json.loads(answer.read() or "null")
    if found is None:
        raise SystemExit(f"row {row} failed; its error stands above.")
    return found


def measured(row: str, task: str, overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """Parameters that a row learns without its head, seconds of a step, and MiB."""
    import torch

    from alignlab.config import parse
    from alignlab.data.batching import Batches, plan
    from alignlab.models.kinds import new_head
    from alignlab.planning import make_plan
    from alignlab.running import build_policy

    torch.set_num_threads(1)
    words = [f"+experiment/red/small/rows={row}", f"+experiment/red/small/tasks={task}", *overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = parse(compose("run", ["experiment=red/small", *words]))
    planned = make_plan(config)
    before = _peak_mib()
    policy = build_policy(
        config.model,
        config.tuner,
        None,
        start="pretrained",
        seed=0,
        device="cpu",
        labels=planned.labels,
        trainer=config.trainer,
    )
    groups, size = planned.works[0].groups, config.method.fit.batch
    batches = Batches(groups, plan(groups, steps=steps, step_groups=size, micro_groups=size, seed=0), policy.backbone.codec.pad)
    learned = policy.tuner.parameters()  # type: ignore[attr-defined]
    head = {id(dict(policy.model.named_parameters())[name]) for name in new_head(policy.model)}
    optimiser = torch.optim.AdamW(learned, lr=1e-3)
    seconds = []
    policy.model.train()
    with policy.only(learned):
        for place in range(steps):
            began = time.process_time()
            policy.nll(batches[place]["batch"]).value.backward()
            optimiser.step()
            optimiser.zero_grad()
            seconds.append(time.process_time() - began)
    return {
        "parameters": sum(each.numel() for each in learned if id(each) not in head),
        "seconds": sum(seconds[1:]) / (len(seconds) - 1),
        "peak_mib": _peak_mib() - before,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
