"""What a dial costs: two streams in one batched pass beside a plain decoder, and beside two separately loaded models.

    python benchmarks/dial.py [--rounds 5] [--batches 1 16 64] [--width 512] [--new 48]

A random Llama (hidden 512, 8 blocks), prompts of 32 tokens, 48 new tokens, two threads. Times: all sides in one process, in
turn; the median step of a round, the ratio of sides within the round, then the median ratio and its range over rounds.
`plain` is the backbone alone in a loop as one would write it, `two-models` two of them with their logits mixed. Memory: one
process a side, peak resident memory above that after the imports; weights: bytes of all parameters held.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT, VOCABULARY = 32, 4096
SIDES = ("plain", "clm", "two-models", "dera")


@dataclass(frozen=True)
class Size:
    """Of the model, how many tokens are decoded, and on how many threads."""

    width: int
    new: int
    threads: int = 2


class NoText:
    """In place of a codec: ids are drawn."""

    template_hash = ""


def main(words: Sequence[str] | None = None) -> None:
    """Times, then memory; with --memory, is one process of the latter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--width", type=int, default=512, help="of the hidden states, a multiple of 16")
    parser.add_argument("--new", type=int, default=48, help="tokens that are decoded")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", nargs=2, metavar=("SIDE", "BATCH"))
    parser.add_argument("--times-only", action="store_true", help="no processes of their own, which memory needs")
    given = parser.parse_args(words)
    size = Size(given.width, given.new, given.threads)
    if given.memory:
        print(json.dumps(memory(given.memory[0], int(given.memory[1]), size)))
        return
    for batch in [] if given.times_only else given.batches:
        compare_memory(batch, size)
    for batch in given.batches:
        compare_times(batch, given.rounds, size)
    compare_products(given.rounds, size)


def compare_times(batch: int, rounds: int, size: Size) -> None:
    """Milliseconds of a step, and ratios."""
    sides = {side: stepper(side, batch, size) for side in SIDES}
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


def compare_products(rounds: int, size: Size) -> None:
    """Why batch 1 costs what it does: a product of two rows with a weight of the feed-forward beside that of one row."""
    import torch

    torch.set_num_threads(size.threads)
    # In turn, so that none stays in a cache.
    weights = [torch.randn(_inner(size.width), size.width) for _ in range(40)]
    ratios = []
    for _ in range(rounds):
        one, two = (statistics.median(_products(weights, torch.randn(rows, size.width))) for rows in (1, 2))
        ratios.append(two / one)
    ratios.sort()
    print(
        f"a product of 2 rows / of 1 row: {statistics.median(ratios):.2f}x  (n = {rounds}, {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def _products(weights: list[Any], x: Any) -> list[float]:
    import torch.nn.functional as F

    seconds = []
    for weight in weights * 5:
        started = time.perf_counter()
        F.linear(x, weight)
        seconds.append(time.perf_counter() - started)
    return seconds


def compare_memory(batch: int, size: Size) -> None:
    """MiB of weights, and of the peak above the imports."""
    found = {side: _child(side, batch, size) for side in SIDES}
    for quantity in ("weights_mib", "peak_mib"):
        shown = ", ".join(f"{side} {values[quantity]:.0f}" for side, values in found.items())
        ratio = found["clm"][quantity] / found["two-models"][quantity]
        print(f"batch {batch:3}: {quantity} {shown}; clm / two-models {ratio:.2f}x")


def memory(side: str, batch: int, size: Size) -> dict[str, float]:
    """Of one side in a process of its own."""
    _imports()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value so far
    before = _resident("VmRSS")
    held: list[Any] = []
    stepper(side, batch, size, held)()
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in held}
    return {"weights_mib": sum(weights.values()) / 2**20, "peak_mib": (_resident("VmHWM") - before) / 1024}


def stepper(side: str, batch: int, size: Size, held: list[Any] | None = None) -> Callable[[], list[float]]:
    """A function that decodes once and returns the seconds of every step after the prompt. `held` gets the weights."""
    import torch

    prompt_BT = torch.randint(4, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    if side in ("plain", "two-models"):
        models = [_backbone(size).model for _ in range(1 if side == "plain" else 2)]
        begin: Callable[[], Any] = lambda: _Models(models)  # noqa: E731
        weights = [tensor for model in models for tensor in model.parameters()]
    else:
        policy = _policy(side, size)
        begin = lambda: _streams(policy, 0.5, batch)  # noqa: E731
        weights = [*policy.model.parameters(), *(origin for _, origin in _start(policy.tuner))]
    if held is not None:
        held.extend(weights)

    @torch.inference_mode()
    def once() -> list[float]:
        seconds = []
        with begin() as streams:
            token_B1, mask_BT = prompt_BT, torch.ones_like(prompt_BT)
            for _ in range(size.new):
                started = time.perf_counter()
                token_B1 = streams.step(token_B1, mask_BT).argmax(-1, keepdim=True)
                seconds.append(time.perf_counter() - started)
                mask_BT = torch.cat([mask_BT, torch.ones_like(token_B1)], dim=1)
        return seconds[1:]

    return once


class _Models:
    """The other routes, as one would write them: each model with its cache, their logits averaged."""

    def __init__(self, models: list[Any]) -> None:
        self._models = [[model, None, 1 / len(models)] for model in models]

    def __enter__(self) -> _Models:
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


def _resident(key: str) -> int:
    """KiB of resident memory, now (VmRSS) or at its highest (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1])


def _imports() -> None:
    """All that a side imports, without a model."""
    rooms = ("models.policy", "models.decode", "tuners.weights", "tuners.clm.tuner")
    for name in ("transformers.models.llama.modeling_llama", *(f"alignlab.{room}" for room in rooms)):
        importlib.import_module(name)


def _streams(policy: Any, strength: float, batch: int) -> Any:
    from alignlab.models.decode import Streams

    return Streams(policy.model, policy.tuner, policy.tuner.passes(strength), batch, policy.backbone.device)


def _start(tuner: Any) -> Any:
    """What `dera` keeps of the other model; the others keep nothing."""
    if not hasattr(tuner, "_start"):
        return []
    with tuner._start.pairs() as pairs:
        return list(pairs)


def _inner(width: int) -> int:
    return width * 11 // 4


def _policy(side: str, size: Size) -> Any:
    import torch

    from alignlab.models.policy import Policy
    from alignlab.tuners import TUNERS

    backbone = _backbone(size)
    settings: dict[str, Any] = {"aligned": None}
    if side != "dera":
        settings = {"blocks": 1, "start": "identity", "merge": "logits", "targets": None, "writes": None}
    entry = TUNERS["dera" if side == "dera" else "clm"]
    name = "dera" if side == "dera" else "clm"
    tuner = entry.build(entry.config(name=name, likelihood_rate=1e-3, preference_rate=1e-3, **settings), backbone.model)
    with torch.no_grad():
        for parameter in tuner.parameters():
            parameter.add_(0.01)
    return Policy(backbone, tuner)


def _backbone(size: Size) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from alignlab.models.backbone import Backbone
    from alignlab.models.kinds import KINDS

    torch.set_num_threads(size.threads)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=_inner(size.width),
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    model: Any = LlamaForCausalLM(shape).eval().requires_grad_(False)
    return Backbone("random", model, NoText(), "random", KINDS["causal"].implementation())  # type: ignore[arg-type]  # ids in, ids out: no text here


def _child(side: str, batch: int, size: Size) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), "--memory", side, str(batch)]
    command += [f"--width={size.width}", f"--new={size.new}", f"--threads={size.threads}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
