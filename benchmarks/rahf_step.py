"""One `fit` step of RAHF through the frame beside the official procedure, written straightforwardly; same model, LoRA and rows.

    python benchmarks/rahf_step.py [--vocabulary 512] [--width 448] [--rounds 3] [--steps 2] [--threads 2] [--device cpu]

A random Llama of 32 blocks in fp32, batch 16, a LoRA (r 8, queries and values) below layer 18, targets 10 to 18. The official
side makes three passes without gradients (plain, good and bad prefix) and one with, all of full depth with every hidden state
and the logits; ours makes one pass for all three and one with gradients, both up to layer 18 and without the head. All rows
are equally long (a prefix of 24 tokens, a prompt of 40, a response of 64), so nothing is gained by padding. Each side runs in
a process of its own, the sides in turn, and the ratios are taken round by round. Memory is the peak above what was resident
before the first step. By counting blocks the floor of the time's ratio is 4.56 / 2.8 = 1.63.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIDES = ("ours", "official")
BATCH, ALPHA, RATE = 16, 5.0, 3e-4
PREFIX, PROMPT, RESPONSE = 24, 40, 64


def main(words: Sequence[str] | None = None) -> None:
    """Runs both sides in turn and prints the ratios; with --side, is one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--in-one-process", action="store_true", help="no process for each side; memory is not to be compared")
    given = parser.parse_args(words)
    if given.side:
        print(json.dumps(measure(given)))
    else:
        compare(given)


def compare(given: argparse.Namespace) -> None:
    """Both sides in turn; medians, and the median and range of the ratios."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(given.rounds):
        for side in SIDES:
            results[side].append(_child(side, given))
    for side, found in results.items():
        seconds = statistics.median(result["seconds"] for result in found)
        peak = statistics.median(result["peak_mib"] for result in found)
        print(f"{side:9} {seconds:7.2f} s/step   peak {peak:7.1f} MiB   first loss {found[0]['loss']:.6f}")
    pairs = list(zip(results["ours"], results["official"], strict=True))
    for name, ratios in (
        ("speed, ours / official", sorted(b["seconds"] / a["seconds"] for a, b in pairs)),
        ("peak memory, ours / official", sorted(a["peak_mib"] / max(b["peak_mib"], 1e-3) for a, b in pairs)),
    ):
        middle = statistics.median(ratios)
        print(f"{name}: {middle:.2f}x  (n = {given.rounds} rounds of {given.steps} steps, {ratios[0]:.2f} to {ratios[-1]:.2f})")


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Mean seconds of a step after the first one, peak memory, and the first loss."""
    import torch

    torch.set_num_threads(given.threads)
    step = (_ours if given.side == "ours" else _official)(given)
    on_gpu = given.device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = _resident("VmRSS")
    losses = [step()]
    begin = time.perf_counter()
    losses += [step() for _ in range(given.steps)]
    seconds = (time.perf_counter() - begin) / given.steps
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _resident("VmHWM")
    return {"seconds": seconds, "peak_mib": peak - before, "loss": losses[0]}


def _model(given: argparse.Namespace) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=given.width,
        intermediate_size=round(2.7 * given.width / 8) * 8,
        num_hidden_layers=given.blocks,
        num_attention_heads=8,
        vocab_size=given.vocabulary,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(given.device).requires_grad_(False)


def _layers(blocks: int) -> list[int]:
    """10, 12, 14, 16 and 18 of 32."""
    return [max(1, blocks * layer // 32) for layer in (10, 12, 14, 16, 18)] if blocks >= 16 else [blocks - 1]


def _rows(vocabulary: int, batch: int) -> tuple[list[list[int]], list[list[int]], list[list[int]], list[list[int]]]:
    """Good and bad prefixes, prompts and responses, without BOS."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[list[int]]:
        return torch.randint(3, vocabulary, (batch, length), generator=generator).tolist()

    good, bad = draw(PREFIX)[0], draw(PREFIX)[0]
    return [good] * batch, [bad] * batch, draw(PROMPT), draw(RESPONSE)


def _ours(given: argparse.Namespace) -> Callable[[], float]:
    """The objective of stage `fit`, as `method=rahf` builds it."""
    import torch

    from alignlab.data.batching import whole
    from alignlab.methods.rahf.objectives import Match, Prefixes
    from alignlab.models.backbone import Backbone
    from alignlab.models.kinds import KINDS
    from alignlab.models.policy import Policy
    from alignlab.records import Encoded, EncodedGroup
    from alignlab.tuners.config import LayersConfig, LowerLoraConfig
    from alignlab.tuners.lora import build

    layers = LayersConfig(numbers=_layers(given.blocks), depth=[0.0, 0.5])
    backbone = Backbone("random", _model(given), _NoText(), "random", KINDS["causal"].implementation())  # type: ignore[arg-type]
    torch.manual_seed(0)
    tuner = build(
        LowerLoraConfig(
            name="lora_lower",
            likelihood_rate=RATE,
            preference_rate=RATE,
            rank=8,
            alpha=16.0,
            dropout=0.0,
            targets=None,
            below=layers,
            beyond=0,
        ),
        backbone.model,
    )
    policy = Policy(backbone, tuner)
    groups = []
    for number, (good, bad, prompt, response) in enumerate(zip(*_rows(given.vocabulary, given.batch), strict=True)):
        prefixes = ([], good, bad)
        members = [
            Encoded((1, *prefix, *prompt, *response), 1 + len(prefix) + PROMPT, head=1 + len(prefix)) for prefix in prefixes
        ]
        groups.append(EncodedGroup(str(number), tuple(members)))
    batch = whole(groups, 0).to(given.device)
    objective = Match(layers, Prefixes(), ALPHA, "norm", 0.0)
    optimiser = torch.optim.AdamW(tuner.parameters(), RATE)

    def step() -> float:
        optimiser.zero_grad()
        loss = objective(policy, batch).value
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return float(loss.item())

    return step


def _official(given: argparse.Namespace) -> Callable[[], float]:
    """Three passes of full depth, then one with the LoRA, all hidden states kept."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model, layers = _model(given), _layers(given.blocks)
    torch.manual_seed(0)
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, layers_to_transform=list(range(max(layers)))
    )
    tuned = get_peft_model(model, adapter)
    good, bad, prompts, responses = _rows(given.vocabulary, given.batch)
    empty: list[list[int]] = [[]] * given.batch
    plain, better, worse = (
        torch.tensor([[1, *prefix, *prompt, *response] for prefix, prompt, response in zip(prefixes, prompts, responses,
        strict=True)]) .to(given.device)
        for prefixes in (empty, good, bad)
    )  # fmt: skip
    optimiser = torch.optim.AdamW([parameter for parameter in tuned.parameters() if parameter.requires_grad], RATE)

    def states(ids: Any) -> Any:
        mask = torch.ones_like(ids)
        return tuned(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True).hidden_states

    def step() -> float:
        optimiser.zero_grad()
        with torch.no_grad(), tuned.disable_adapter():
            base, plus, minus = (states(ids) for ids in (plain, better, worse))
        moved = states(plain)
        loss = torch.zeros((), device=given.device)
        for layer in layers:
            at = [each[layer][:, -RESPONSE:] for each in (moved, base, plus, minus)]
            loss = loss + (at[0] - (at[1] + ALPHA * (at[2] - at[3]))).norm(dim=-1).mean() / len(layers)
        loss.backward()
        optimiser.step()
        return float(loss.item())

    return step


class _NoText:
    """In place of a codec: ids are drawn."""

    template_hash = ""


def _child(side: str, given: argparse.Namespace) -> dict[str, float]:
    if given.in_one_process:
        return measure(argparse.Namespace(**{**vars(given), "side": side}))
    words = [f"--{name}={value}" for name, value in vars(given).items() if name not in ("side", "rounds", "in_one_process")]
    done = subprocess.run([sys.executable, __file__, f"--side={side}", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _resident(field: str) -> float:
    """MiB, from the kernel's own account of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main()
