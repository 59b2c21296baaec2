"""A step on single responses, all rows in one without padding beside one padded row each: same rows, model, order and threads.

    python benchmarks/packed_rows.py [--rows 240] [--rounds 5]

Chosen responses of real HH-RLHF pairs, LoRA r=16 on all linear maps, batch 8, stories260k, two threads. Batches are formed by
length, as in a training; `drawn` takes them as they come. The sides run in turn in one process, and ratios are taken round by
round. Needs ALIGNLAB_SHARED or ../shared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from preference_step import ALPHA, BATCH, RANK, RATE, _backbone, _records

ORDERS = ("by length", "drawn")
PACKINGS = ("off", "all")


def main(words: Sequence[str] | None = None) -> None:
    """Both layouts in both orders; the medians and the ratios with their range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(words)
    for order in ORDERS:
        batches, padding = _batches(given.rows, order)
        step = _step(given.rows)
        seconds: dict[str, list[float]] = {packing: [] for packing in PACKINGS}
        for packing in PACKINGS:
            step(packing, batches[0])
        for _ in range(given.rounds):
            for packing in PACKINGS:
                seconds[packing].append(_timed(step, packing, batches))
        ratios = sorted(off / packed for off, packed in zip(seconds["off"], seconds["all"], strict=True))
        speed = {packing: given.rows / statistics.median(seconds[packing]) for packing in PACKINGS}
        print(
            f"{order:10} padding {padding:.0%}: padded {speed['off']:.1f} rows/s, packed {speed['all']:.1f} rows/s,"
            f" packed / padded {statistics.median(ratios):.2f}x (n = {given.rounds}, {ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def _batches(rows: int, order: str) -> tuple[list[Any], float]:
    """Batches of single responses, and the share of padding in them."""
    from dataclasses import replace

    from alignlab.data.batching import collate, in_order

    pairs, _ = _records(rows)
    groups = [replace(pair, members=pair.members[:1]) for pair in pairs]
    drawn = [list(range(begin, begin + BATCH)) for begin in range(0, rows, BATCH)]
    members = in_order(groups, BATCH) if order == "by length" else drawn
    tokens = sum(group.length for group in groups)
    made = [collate([groups[index] for index in batch], pad=0, step_groups=len(batch), step_tokens=tokens) for batch in members]
    held = sum(batch.ids_GMT.numel() for batch in made)
    return made, 1 - tokens / held


def _step(rows: int) -> Callable[[str, Any], None]:
    """A function that makes one step of training under a packing."""
    from alignlab.models.policy import Policy
    from alignlab.training.objectives import nll
    from alignlab.tuners.config import LoraConfig
    from alignlab.tuners.lora import build

    backbone = _backbone(rows)
    torch.manual_seed(0)
    tuner = build(LoraConfig("lora", RATE, RATE, RANK, ALPHA, 0.0, []), backbone.model)
    policy = Policy(backbone, tuner)
    optimiser = torch.optim.AdamW(tuner.parameters(), lr=RATE)

    def step(packing: str, batch: Any) -> None:
        policy.packing = packing
        nll(policy, batch).value.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def _timed(step: Callable[[str, Any], None], packing: str, batches: Sequence[Any]) -> float:
    begin = time.perf_counter()
    for batch in batches:
        step(packing, batch)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
