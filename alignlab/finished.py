"""What is made of trained stages: the evaluation and the report, and later the policy or a plain checkpoint, loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig
from peft import PeftConfig

from alignlab.config import GROUPS, parts_of
from alignlab.errors import ControlError, RunFolderError
from alignlab.evaluation.report import Report, Row, write_report
from alignlab.evaluation.suite import EvaluationContext, sweep
from alignlab.models.export import export_plain
from alignlab.models.policy import Policy
from alignlab.planning import Plan
from alignlab.plots import draw_curves, draw_dial, draw_profile
from alignlab.records import NO_CLASS, LabelSet
from alignlab.running import CONTROL, LABELS, build_policy, device_of
from alignlab.tracking.ledger import Ledger
from alignlab.training.collect import PROFILE
from alignlab.training.stages import Session
from alignlab.tuners.control.tuner import export_class


def evaluate(plan: Plan, policy: Policy, session: Session) -> list[Row]:
    """Every fitting suite at every point of the control."""
    config = plan.config
    context = EvaluationContext(
        policy,
        plan.source,
        plan.held_out,
        config.evaluation,
        plan.classes,
        plan.held_out_items,
        plan.labels,
        plan.held_out_labels,
    )
    if not config.suites:
        return []
    return sweep(context, config.suites, plan.points, _log_row(session))


def report(plan: Plan, rows: list[Row], session: Session) -> Report:
    """report.json, the figures, and the tracker's table."""
    config = plan.config
    names = {
        "fingerprint": config.fingerprint,
        **{group: getattr(config, group).name for group in ("method", "tuner", "model", "data")},
        "seed": config.seed,
        "parameters": {"learned": plan.learned, "all": plan.parameters},
        "rows": {
            **{stage.name: asdict(work.account) for stage, work in zip(plan.method.stages, plan.works, strict=True)},
            **({"held_out": asdict(plan.held_out.account)} if plan.held_out else {}),
            **({"held_out_items": asdict(plan.held_out_items.account)} if plan.held_out_items else {}),
            **({"held_out_labels": asdict(plan.held_out_labels.account)} if plan.held_out_labels else {}),
        },
    }
    made = write_report(session.ledger, names, rows)
    figures = [draw_curves(session.ledger, session.folder / "curves.png"), *_profiles(plan, session)]
    turned = [row for row in rows if row.control == plan.points[-1].control]
    if config.control.figure and config.control.strengths and turned:
        figures.append(draw_dial(turned, session.folder / "dial.png"))
    session.tracker.results([row.plain for row in rows], figures)
    return made


def _profiles(plan: Plan, session: Session) -> list[Path]:
    """A figure for each stage that has left a profile of what it saw."""
    ledgers = {stage.name: Ledger(session.stage_folder(stage.name)) for stage in plan.method.stages}
    found = {name: ledger.read(PROFILE) for name, ledger in ledgers.items()}
    return [draw_profile(profile, session.folder / f"{name}.png") for name, profile in found.items() if profile]


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
        labels=None if labels is None else LabelSet(tuple(labels["names"]), labels.get("numbers", False)),
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


def _log_row(session: Session) -> Any:
    def log_row(title: str, row: Row) -> None:
        session.log(f"evaluation/{title}/{row.suite}", 0, {row.metric: row.value})

    return log_row
