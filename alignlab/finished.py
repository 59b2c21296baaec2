"""What can be loaded from a finished run: its policy, and a plain checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from omegaconf import DictConfig
from peft import PeftConfig

from alignlab.config import GROUPS, parts_of
from alignlab.errors import ControlError, RunFolderError
from alignlab.models.export import export_plain
from alignlab.models.policy import Policy
from alignlab.records import NO_CLASS, LabelSet
from alignlab.running import CONTROL, LABELS, build_policy, device_of
from alignlab.tracking.ledger import Ledger
from alignlab.tuners.control.tuner import export_class


def load(folder: str | Path, device: str = "auto") -> Policy:
    """The policy of a finished run: `load("runs/.../seed-0").respond(prompts, strength=..., ...)`. Its data is not needed.

    Raises RunFolderError where the folder holds no finished run.
    """
    folder = Path(folder)
    status = Ledger(folder).read("status.json")
    if not status or status["state"] != "done":
        state = status["state"] if status else "not a run folder"
        raise RunFolderError(f"{folder} holds no finished run ({state}); give the folder that has report.json in it.")
    plain = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    parts = parts_of(DictConfig(plain), ("method", "tuner", "model", "trainer"))
    method = GROUPS["method"][parts["method"].name].build(parts["method"])
    written = folder / CONTROL
    labels = Ledger(folder).read(LABELS)
    policy = build_policy(
        parts["model"],
        parts["tuner"],
        PeftConfig.from_pretrained(str(written)) if written.is_dir() else None,
        start=method.start,
        seed=plain["seed"],
        device=device_of(device),
        labels=None if labels is None else LabelSet(tuple(labels["names"])),
        trainer=parts["trainer"],
    )
    for stage in filter(lambda stage: stage.stays, method.stages):
        stage.restore(policy, folder / "stages" / stage.name)
    return policy


def export(folder: Path, to: Path, dtype: str, control: str | None = None) -> float:
    """A run as a plain checkpoint, under one class where it has classes; returns the largest difference of logits between the
    run and the reloaded checkpoint.

    Raises ModelError where the tuner has no plain form in this architecture (see its card), and ControlError for a class that
    is missing, unknown, or asked of a run without any.
    """
    policy = load(folder, device="cpu")
    controls = policy.tuner.controls
    if controls is not None:
        if control is None:
            raise ControlError(f"{folder} has a class to choose: --control {', '.join(controls.names)} or {NO_CLASS}.")
        return export_class(policy, control, to, getattr(torch, dtype))
    if control is not None:
        raise ControlError(f"{folder} has no classes; leave --control out.")
    tuned = getattr(policy.tuner, "module", policy.model)
    return export_plain(tuned, policy.backbone.codec.tokenizer, to, getattr(torch, dtype))
