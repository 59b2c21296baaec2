"""What a dial costs: two streams in one batched pass beside a plain decoder, and beside two separately loaded models.

    python benchmarks/dial.py [--rounds 7]

A random Llama (hidden 512, 8 blocks), prompts of 32 tokens, 48 new tokens, two threads. Times: all sides in one process, in
turn; the median step of a round, the ratio of sides within the round, then the median ratio and its range over rounds.
Memory: one process a side, peak resident memory above that after the imports; weights: bytes of all parameters held.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCHES = (1, 16, 64)
PROMPT, NEW, VOCABULARY = 32, 48, 4096
SIDES = ("plain", "clm", "two-models", "dera")


def main() -> None:
    """Times, then memory; with --memory, is one process of the latter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", nargs=2, metavar=("SIDE", "BATCH"))
    given = parser.parse_args()
    if given.memory:
        print(json.dumps(memory(given.memory[0], int(given.memory[1]))))
        return
    for batch in BATCHES:
        compare_times(batch, given.rounds)
    for batch in BATCHES:
        compare_memory(batch)


def compare_times(batch: int, rounds: int) -> None:
    """Milliseconds of a step, and ratios."""
    sides = {side: stepper(side, batch) for side in SIDES}
    for once in sides.values():
        once()
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, once in sides.items():
            times[side].append(statistics.median(once()))
    shown = ", ".join(f"{side} {1000 * statistics.median(values):.2f} ms" for side, values in times.items())
    print(f"batch {batch:3}: one step {shown}")
    for above, below in (("clm", "plain"), ("clm", "two-models"), ("clm", "dera")):
        ratios = sorted(a / b for a, b in zip(times[above], times[below], strict=True))
        print(
            f"    time {above} / {below}: {statistics.median(ratios):.2f}x  (n = {rounds}, {ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def compare_memory(batch: int) -> None:
    """MiB of weights, and of the peak above the imports."""
    found = {side: _child(side, batch) for side in SIDES}
    for quantity in ("weights_mib", "peak_mib"):
        shown = ", ".join(f"{side} {values[quantity]:.0f}" for side, values in found.items())
        ratio = found["clm"][quantity] / found["two-models"][quantity]
        print(f"batch {batch:3}: {quantity} {shown}; clm / two-models {ratio:.2f}x")


def memory(side: str, batch: int) -> dict[str, float]:
    """Of one side in a process of its own."""
    _backbone()  # imports, and the first touch of what every side needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held: list[Any] = []
    stepper(side, batch, held)()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in held}
    return {"weights_mib": sum(weights.values()) / 2**20, "peak_mib": (after - before) / 1024}


def stepper(side: str, batch: int, held: list[Any] | None = None) -> Callable[[], list[float]]:
    """A function that decodes once and returns the seconds of every step after the prompt. `held` gets the weights."""
    import torch

    prompt_BT = torch.randint(4, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    if side == "two-models":
        aligned, plain = _backbone().model, _backbone().model
        begin: Callable[[], Any] = lambda: _TwoModels(aligned, plain)  # noqa: E731
        weights = [*aligned.parameters(), *plain.parameters()]
    else:
        policy, strength = _policy(side), 0.0 if side == "plain" else 0.5
        begin = lambda: _streams(policy, strength, batch)  # noqa: E731
        weights = [*policy.model.parameters(), *(origin for _, origin in getattr(policy.knob, "_origins", []))]
    if held is not None:
        held.extend(weights)

    @torch.inference_mode()
    def once() -> list[float]:
        seconds = []
        with begin() as streams:
            token_B1, mask_BT = prompt_BT, torch.ones_like(prompt_BT)
            for _ in range(NEW):
                started = time.perf_counter()
                token_B1 = streams.step(token_B1, mask_BT).argmax(-1, keepdim=True)
                seconds.append(time.perf_counter() - started)
                mask_BT = torch.cat([mask_BT, torch.ones_like(token_B1)], dim=1)
        return seconds[1:]

    return once


class _TwoModels:
    """The other route, as one would write it: two models, two caches, one mix."""

    def __init__(self, aligned: Any, plain: Any) -> None:
        self._models = [[aligned, None, 0.5], [plain, None, 0.5]]

    def __enter__(self) -> _TwoModels:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, ids_BT: Any, mask_BT: Any) -> Any:
        logits_BV = 0.0
        for entry in self._models:
            model, cache, weight = entry
            output = model(ids_BT, attention_mask=mask_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
            entry[1] = output.past_key_values
            logits_BV = logits_BV + weight * output.logits[:, -1].float()
        return logits_BV


def _streams(policy: Any, strength: float, batch: int) -> Any:
    from alignlab.models.streams import Streams

    return Streams(policy.model, policy.knob, strength, batch, policy.backbone.device)


def _policy(side: str) -> Any:
    import torch

    from alignlab.models.policy import Policy
    from alignlab.tuners import TUNERS

    backbone = _backbone()
    settings: dict[str, Any] = {"aligned": None} if side == "dera" else {"blocks": 1, "start": "identity", "merge": "logits"}
    entry = TUNERS["dera" if side == "dera" else "clm"]
    name = "dera" if side == "dera" else "clm"
    tuner = entry.build(entry.config(name=name, likelihood_rate=1e-3, preference_rate=1e-3, **settings), backbone.model)
    with torch.no_grad():
        for parameter in tuner.parameters():
            parameter.add_(0.01)
    return Policy(backbone, tuner)


def _backbone() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from alignlab.models.backbone import Backbone

    torch.set_num_threads(2)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    model: Any = LlamaForCausalLM(shape).eval().requires_grad_(False)
    return Backbone("random", model, None, "random")  # type: ignore[arg-type]  # ids in, ids out: no text here


def _child(side: str, batch: int) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), "--memory", side, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
