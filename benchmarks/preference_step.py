"""A preference step through the frame beside TRL's DPOTrainer: the same rows, model, adapter and threads, in one run.

    python benchmarks/preference_step.py [--pairs 480] [--rounds 5]

LoRA r=16 on all linear maps, batch 8, real HH-RLHF pairs, stories260k, two threads. Each side runs in a process of its own,
the sides in turn, and the ratios are taken round by round. Memory is the peak above what was resident after the imports.
The loss comparison gives both sides the same batches in the same order. Needs `trl` and ALIGNLAB_SHARED or ../shared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("ALIGNLAB_SHARED", Path(__file__).parents[2] / "shared"))
SIDES = ("ours", "ours-cached", "trl", "trl-cached")
BATCH, RANK, ALPHA, BETA, RATE, WARM_UP = 8, 16, 16.0, 0.1, 1e-4, 5


def main() -> None:
    """Runs all sides in turn and prints the ratios; with --side, is one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=(*SIDES, "losses"))
    given = parser.parse_args()
    if given.side == "losses":
        print(json.dumps(same_losses(given.pairs)))
    elif given.side:
        print(json.dumps(measure(given.side, given.pairs)))
    else:
        compare(given.pairs, given.rounds)


def compare(pairs: int, rounds: int) -> None:
    """Every side in turn, `rounds` times; medians of the ratios and their range."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            results[side].append(_child(side, pairs))
    for side in SIDES:
        speeds = [result["pairs_per_second"] for result in results[side]]
        peaks = [result["peak_mib"] for result in results[side]]
        print(f"{side:12} {statistics.median(speeds):7.1f} pairs/s   peak {statistics.median(peaks):6.1f} MiB above imports")
    for ours, other in (("ours", "trl"), ("ours-cached", "trl"), ("ours-cached", "trl-cached")):
        for quantity in ("pairs_per_second", "peak_mib"):
            ratios = sorted(a[quantity] / b[quantity] for a, b in zip(results[ours], results[other], strict=True))
            middle = statistics.median(ratios)
            print(f"{ours} / {other}: {quantity} {middle:.2f}x  (n = {rounds}, {ratios[0]:.2f} to {ratios[-1]:.2f})")
    losses = _child("losses", pairs)
    print(f"largest difference of losses over {losses['steps']:.0f} training steps: {losses['difference']:.2g}")


def measure(side: str, pairs: int) -> dict[str, float]:
    """Trains on the rows once; pairs per second after a warm-up, and peak memory above the imports."""
    train = _ours(pairs, cached=side.endswith("cached")) if side.startswith("ours") else _trl(pairs, side.endswith("cached"))
    _reset_peak()
    before = _memory("VmRSS")
    train.train()
    after = _memory("VmHWM")
    clock = train.callback_handler.callbacks[-1]
    return {"pairs_per_second": clock.speed(), "peak_mib": (after - before) / 1024}


def same_losses(pairs: int) -> dict[str, float]:
    """The largest difference between the losses of both sides."""
    ours = _ours(pairs, cached=False)
    ours.train()
    order = [index for share in ours.train_dataset._shares for index in share.members]
    theirs = _trl(pairs, cached=False, order=order)
    theirs.train()
    a, b = ([entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (ours, theirs))
    return {"difference": max(abs(x - y) for x, y in zip(a, b, strict=True)), "steps": len(a)}


def _records(pairs: int) -> Any:
    """The first real pairs that fit the model, as groups of ids and as text."""
    from alignlab.data.config import HhConfig, PrefixConfig
    from alignlab.data.encode import Limits, encode
    from alignlab.data.hh_rlhf import build
    from alignlab.data.views import pair

    source = build(
        HhConfig(
            name="hh_rlhf",
            max_tokens=None,
            too_long="drop",
            limit=2 * pairs,
            test_limit=None,
            prefixes=PrefixConfig(None, None, ""),
            records=None,
            flipped=0.0,
            halves=None,
            part=None,
            path=str(SHARED / "data" / "hh-rlhf"),
            train="*train*",
            test="*test*",
            hub="",
            revision=None,
            subsets=[],
            unusable_pairs="drop",
        )
    )
    codec = _backbone().codec
    groups, _ = encode(source.split("train"), pair, codec.examples, Limits(512, "drop"))
    groups = groups[:pairs]
    by_row = {record.row: record for record in source.split("train").records}
    return groups, [by_row[group.row] for group in groups]


def _backbone() -> Any:
    import torch

    from alignlab.models.backbone import load
    from alignlab.models.config import ModelConfig, TemplateConfig

    torch.set_num_threads(2)
    template = TemplateConfig("{prompt}", chat=False, bos=None)
    path = str(SHARED / "models" / "stories260k")
    sheet = ModelConfig("local", "folder", path, None, "float32", "sdpa", trust_remote_code=False, template=template)
    return load(sheet, start="pretrained", seed=0, device="cpu")


def _ours(pairs: int, *, cached: bool) -> Any:
    """The project's trainer, as `method=dpo tuner=lora` builds it."""
    import torch

    from alignlab.data.batching import Batches, plan
    from alignlab.models.policy import Policy
    from alignlab.tracking.ledger import Ledger
    from alignlab.tracking.tracker import NoTracker
    from alignlab.training.config import FitConfig, TrainerConfig
    from alignlab.training.objectives import Preference
    from alignlab.training.references import with_references
    from alignlab.training.session import Session
    from alignlab.training.trainer import FitTrainer, Step, arguments
    from alignlab.tuners.config import LoraConfig
    from alignlab.tuners.lora import build

    folder = Path(tempfile.mkdtemp())
    steps = pairs // BATCH
    groups, _ = _records(pairs)
    backbone = _backbone()
    torch.manual_seed(0)
    tuner = build(LoraConfig("lora", RATE, RATE, RANK, ALPHA, 0.0, []), backbone.model)
    policy = Policy(backbone, tuner)
    if cached:
        groups = with_references(groups, policy, folder, weights="stories260k", inside=policy.off())
    sheet = TrainerConfig("default", "cpu", None, "pairs", False, 10**6, 1, 1, None, {"save_strategy": "no"})
    fit = FitConfig(None, steps, BATCH, RATE, "constant", 0.0, 0.0, 0.9, 0.999, 1e-8, 1.0, "response")
    session = Session(folder, folder, Ledger(folder), NoTracker(), sheet, "cpu", 0)
    shares = plan(groups, steps=steps, step_groups=BATCH, micro_groups=BATCH, seed=0)
    objective = Preference("sigmoid", BETA, 0.0, "sum", "base", 0.0)
    policy.model.requires_grad_(False)
    [parameter.requires_grad_(True) for parameter in tuner.parameters()]
    batches = Batches(groups, shares, backbone.codec.pad)
    trainer = FitTrainer(Step(policy, objective), "prefer", tuner, session, batches, arguments(fit, session, folder, steps))
    trainer.add_callback(_clock())
    return trainer


def _trl(pairs: int, cached: bool, order: list[int] | None = None) -> Any:
    """TRL's trainer on the same rows; in its own random order unless one is given."""
    import peft
    import torch
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl import DPOConfig, DPOTrainer

    disable_progress_bar()
    _, records = _records(pairs)
    chosen = [records[index] for index in order] if order else records
    texts = [{"prompt": r.prompt, "chosen": r.responses[0].text, "rejected": r.responses[1].text} for r in chosen]
    backbone = _backbone()
    torch.manual_seed(0)
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        max_steps=len(texts) // BATCH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_epsilon=1e-8,
        optim="adamw_torch",
        beta=BETA,
        max_length=512,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        precompute_ref_log_probs=cached,
        train_sampling_strategy="sequential" if order else "random",
        seed=0,
    )
    trainer = DPOTrainer(
        model=backbone.model,
        args=config,
        train_dataset=Dataset.from_list(texts),
        processing_class=backbone.codec.tokenizer,
        peft_config=adapter,
    )
    trainer.add_callback(_clock())
    return trainer


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Time between the ends of steps, the first few left out."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.ends.append(time.perf_counter())

        def speed(self) -> float:
            return BATCH * (len(self.ends) - 1 - WARM_UP) / (self.ends[-1] - self.ends[WARM_UP])

    return Clock()


def _child(side: str, pairs: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--pairs", str(pairs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "2"})
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _memory(field: str) -> float:
    """KiB, from the kernel's own account of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1])


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


if __name__ == "__main__":
    main()
