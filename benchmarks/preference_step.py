"""A preference step through the frame beside TRL's DPOTrainer: the same rows, model, adapter and threads, in one run.

    python benchmarks/preference_step.py [--pairs 480] [--rounds 5] [--warm-up 5] [--threads 2]

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("ALIGNLAB_SHARED", Path(__file__).parents[2] / "shared"))
SIDES = ("ours", "ours-cached", "trl", "trl-cached")
BATCH, RANK, ALPHA, BETA, RATE = 8, 16, 16.0, 0.1, 1e-4


def main(words: Sequence[str] | None = None) -> None:
    """Runs all sides in turn and prints the ratios; with --side, is one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=(*SIDES, "losses"))
    parser.add_argument("--warm-up", type=int, default=5, help="steps of which no time is taken")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--in-one-process", action="store_true", help="no process for each side; memory is not to be compared")
    given = parser.parse_args(words)
    if given.side:
        print(json.dumps(one_side(given.side, given)))
    else:
        compare(given)


def one_side(side: str, given: argparse.Namespace) -> dict[str, float]:
    """What one side gives."""
    import torch

    torch.set_num_threads(given.threads)
    return same_losses(given.pairs) if side == "losses" else measure(side, given.pairs, given.warm_up)


def compare(given: argparse.Namespace) -> None:
    """Every side in turn, `rounds` times; medians of the ratios and their range."""
    rounds = given.rounds
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            results[side].append(_child(side, given))
    for side in SIDES:
        speeds = [result["pairs_per_second"] for result in results[side]]
        peaks = [result["peak_mib"] for result in results[side]]
        print(f"{side:12} {statistics.median(speeds):7.1f} pairs/s   peak {statistics.median(peaks):6.1f} MiB above imports")
    for ours, other in (("ours", "trl"), ("ours-cached", "trl"), ("ours-cached", "trl-cached")):
        for quantity in ("pairs_per_second", "peak_mib"):
            ratios = sorted(a[quantity] / b[quantity] for a, b in zip(results[ours], results[other], strict=True))
            middle = statistics.median(ratios)
            print(f"{ours} / {other}: {quantity} {middle:.2f}x  (n = {rounds}, {ratios[0]:.2f} to {ratios[-1]:.2f})")
    losses = _child("losses", given)
    print(f"largest difference of losses over {losses['steps']:.0f} training steps: {losses['difference']:.2g}")


def measure(side: str, pairs: int, warm_up: int) -> dict[str, float]:
    """Trains on the rows once; pairs per second after a warm-up, and peak memory above the imports."""
    train = _ours(pairs, cached=side.endswith("cached")) if side.startswith("ours") else _trl(pairs, side.endswith("cached"))
    _reset_peak()
    before = _memory("VmRSS")
    train.train()
    after = _memory("VmHWM")
    clock = train.callback_handler.callbacks[-1]
    return {"pairs_per_second": clock.speed(warm_up), "peak_mib": (after - before) / 1024}


def same_losses(pairs: int) -> dict[str, float]:
    """The largest difference between the losses of both sides."""
    ours = _ours(pairs, cached=False)
    ours.train()
    order = [index for share in ours.train_dataset._shares for index in share.members]
    theirs = _trl(pairs, cached=False, order=order)
    theirs.train()
    a, b = ([entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (ours, theirs))
    return {"difference": max(abs(x - y) for x, y in zip(a, b, strict=True)), "steps": len(a)}


def _run(pairs: int) -> Any:
    """The run as its configs say it, but for what is named here."""
    from hydra import compose, initialize_config_dir

    from alignlab.config import parse

    words = [
        *("method=dpo", "method.prefer.epochs=null", f"method.prefer.steps={pairs // BATCH}", f"method.prefer.batch={BATCH}"),
        *(f"method.prefer.learning_rate={RATE}", "method.prefer.schedule=constant", "method.prefer.warmup_fraction=0.0"),
        *(f"method.beta={BETA}", "method.reference=base"),
        *("tuner=lora", f"tuner.rank={RANK}", f"tuner.alpha={ALPHA}", "tuner.dropout=0.0", "tuner.targets=[]"),
        *("model=local", f"model.path={SHARED / 'models' / 'stories260k'}", "model.dtype=float32"),
        *("data=hh_rlhf", f"data.path={SHARED / 'data' / 'hh-rlhf'}", "data.train='*train*'", "data.test='*test*'"),
        *(
            f"data.limit={2 * pairs}",
            "trainer.device=cpu",
            "trainer.log_every_steps=1",
            "trainer.checkpoint_every_steps=1000000",
        ),
    ]
    with initialize_config_dir(config_dir=str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        return parse(compose("run", overrides=words))


def _records(pairs: int) -> Any:
    """The first real pairs that fit the model, as groups of ids and as text."""
    from alignlab.config import GROUPS
    from alignlab.data.encode import Limits, encode, pair

    data = _run(pairs).data
    source = GROUPS["data"][data.name].build(data)
    codec = _backbone(pairs).codec
    groups, _ = encode(source.split("train"), pair, codec.examples, Limits(512, "drop"))
    groups = groups[:pairs]
    by_row = {record.row: record for record in source.split("train").records}
    return groups, [by_row[group.row] for group in groups]


def _backbone(pairs: int) -> Any:
    from alignlab.models.backbone import load

    return load(_run(pairs).model, start="pretrained", seed=0, device="cpu")


def _ours(pairs: int, *, cached: bool) -> Any:
    """The project's trainer, as `method=dpo tuner=lora` builds it."""
    import torch

    from alignlab.config import GROUPS
    from alignlab.data.batching import Batches, plan
    from alignlab.models.policy import Policy
    from alignlab.tracking import NoTracker
    from alignlab.tracking.ledger import Ledger
    from alignlab.training.arguments import arguments
    from alignlab.training.references import with_references
    from alignlab.training.stages import Session
    from alignlab.training.trainable import training
    from alignlab.training.trainer import FitTrainer, Step

    folder = Path(tempfile.mkdtemp())
    steps = pairs // BATCH
    config = _run(pairs)
    (stage,) = GROUPS["method"]["dpo"].build(config.method).stages
    groups, _ = _records(pairs)
    backbone = _backbone(pairs)
    torch.manual_seed(0)
    tuner = GROUPS["tuner"]["lora"].build(config.tuner, backbone.model)
    policy = Policy(backbone, tuner)
    if cached:
        groups = with_references(groups, policy, folder, weights="stories260k", inside=policy.off())
    session = Session(folder, folder, Ledger(folder), NoTracker(), config.trainer, "cpu", 0)
    shares = plan(groups, steps=steps, step_groups=BATCH, micro_groups=BATCH, seed=0)
    policy.model.requires_grad_(False)
    [parameter.requires_grad_(True) for parameter in tuner.parameters()]
    batches = Batches(groups, shares, backbone.codec.pad)
    args = arguments(stage.fit, session.trainer, folder, steps, session.seed)
    with training(policy, stage.trains) as parts:
        trainer = FitTrainer(Step(policy, stage.objective), stage.name, parts, session, batches, args)
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
    backbone = _backbone(pairs)
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

        def speed(self, warm_up: int) -> float:
            return BATCH * (len(self.ends) - 1 - warm_up) / (self.ends[-1] - self.ends[warm_up])

    return Clock()


def _child(side: str, given: argparse.Namespace) -> dict[str, float]:
    if given.in_one_process:
        return one_side(side, given)
    command = [sys.executable, __file__, f"--side={side}", f"--pairs={given.pairs}", f"--warm-up={given.warm_up}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    )
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
