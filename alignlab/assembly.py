"""From a plan to a run: the folder, the policy, the stages, the evaluation and the report."""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from alignlab.config import GROUPS, RunConfig
from alignlab.errors import AlignlabError, ConfigError
from alignlab.evaluation.report import Report, write_report
from alignlab.evaluation.suite import EvaluationContext
from alignlab.evaluation.sweep import Row, sweep
from alignlab.folders import STORE, folder_of
from alignlab.models.policy import Policy
from alignlab.plots import draw_curves, draw_dial, draw_profile
from alignlab.preparation import Plan
from alignlab.provenance import environment
from alignlab.records import LabelSet
from alignlab.tracking import Identity, NoTracker
from alignlab.tracking.ledger import Ledger
from alignlab.training import processes
from alignlab.training.collect import PROFILE
from alignlab.training.config import TrainerConfig
from alignlab.training.stages import Session

log = logging.getLogger(__name__)
CONTROL = "control"
"""Folder of a run with the configuration of its control, so that it loads without its data."""
LABELS = "labels.json"
"""File of a run with what its texts are told to be, likewise."""


@contextmanager
def open_session(config: RunConfig) -> Iterator[Session]:
    """The run folder with its ledger and tracker, closed as done or as failed, or left to be gone on with."""
    if not processes.is_main_process():
        with _worker(config) as following:
            yield following
        return
    folder = folder_of(config)
    ledger = Ledger(folder)
    if config.force:
        _forget(folder)
    device = device_of(config.trainer.device)
    written = {key: value for key, value in config.plain.items() if key != "launch"}  # a cluster's accounts are not the run's
    ledger.write("config.json", {"fingerprint": config.fingerprint, "seed": config.seed, **written})
    (folder / "config.yaml").write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    ledger.write("env.json", {**environment(), "processes": processes.count()})
    ledger.status("running", host=socket.gethostname())
    processes.meet()
    tracker = GROUPS["tracking"][config.tracking.name].build(config.tracking, _identity(config, folder))
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    session = Session(folder, Path(config.paths.runs) / STORE, ledger, tracker, config.trainer, device, config.seed)
    try:
        with session.preemption.heeded(lambda: _leave(session)):
            yield session
    except KeyboardInterrupt:
        ledger.status("interrupted")
        tracker.close(failed=True)
        raise
    except BaseException as error:
        if isinstance(error, SystemExit) and session.preemption.left:
            raise
        try:
            processes.failed(ledger, error)
        finally:
            tracker.close(failed=True)
        raise
    ledger.status("done")
    tracker.close(failed=False)


@contextmanager
def _worker(config: RunConfig) -> Iterator[Session]:
    """The session of a process that is a worker. It begins behind the main process's, and writes nothing but that it failed."""
    processes.meet()
    folder = folder_of(config)
    ledger = processes.SilentLedger(folder)
    store, device = Path(config.paths.runs) / STORE, device_of(config.trainer.device)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    session = Session(folder, store, ledger, NoTracker(), config.trainer, device, config.seed)
    try:
        with session.preemption.heeded(lambda: None):
            yield session
    except AlignlabError:
        raise  # the main process's too, who writes it down
    except Exception as error:
        processes.failed(Ledger(folder), error)
        raise


def build_policy(
    model: Any,
    tuner: Any,
    control: Any,
    *,
    start: str,
    seed: int,
    device: str,
    trainer: TrainerConfig,
    labels: LabelSet | None = None,
) -> Policy:
    """The backbone with a new tuner in it, both decided by the seed."""
    backbone = GROUPS["model"][model.name].build(model, start=start, seed=seed, device=device, labels=labels)
    torch.manual_seed(seed)
    tuner = GROUPS["tuner"][tuner.name].build(tuner, backbone.model, control)
    policy = Policy(backbone, tuner, packing=trainer.packing, pass_gib=trainer.pass_gib)
    log.info("rows: %s", policy.layout_reason)
    return policy


def policy_of(plan: Plan, session: Session) -> Policy:
    """The policy that a plan asks for."""
    config = plan.config
    start = plan.method.start
    if plan.control is not None and processes.is_main_process():
        plan.control.save_pretrained(session.folder / CONTROL)
    if plan.labels is not None and processes.is_main_process():
        session.ledger.write(LABELS, asdict(plan.labels))
    return build_policy(
        config.model,
        config.tuner,
        plan.control,
        start=start,
        seed=config.seed,
        device=session.device,
        trainer=config.trainer,
        labels=plan.labels,
    )


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
    session.tracker.results([asdict(row) for row in rows], figures)
    return made


def _profiles(plan: Plan, session: Session) -> list[Path]:
    """A figure for each stage that has left a profile of what it saw."""
    ledgers = {stage.name: Ledger(session.stage_folder(stage.name)) for stage in plan.method.stages}
    found = {name: ledger.read(PROFILE) for name, ledger in ledgers.items()}
    return [draw_profile(profile, session.folder / f"{name}.png") for name, profile in found.items() if profile]


def _leave(session: Session) -> None:
    """A preempted run: another process goes on with it."""
    session.ledger.status("preempted")
    session.tracker.pause()


def _forget(folder: Path) -> None:
    """Removes what an earlier run of the same config left, so that force=true begins at the start."""
    shutil.rmtree(folder / "stages", ignore_errors=True)
    for name in ("metrics.jsonl", "report.json", "status.json"):
        (folder / name).unlink(missing_ok=True)


def _identity(config: RunConfig, folder: Path) -> Identity:
    shown = {key: value for key, value in config.plain.items() if key not in ("paths", "folder", "plan", "force", "launch")}
    for group in ("model", "data"):  # local paths stay on this machine
        shown[group] = {key: value for key, value in config.plain[group].items() if key != "path"}
    return Identity(
        id=f"{config.fingerprint}-{config.seed}",
        name=f"{config.title}-{config.seed}",
        group=getattr(config.tracking, "group", None) or config.sweep or config.title,
        job_type=config.method.name,
        tags=(config.method.name, config.tuner.name, config.model.name, config.data.name),
        folder=folder,
        config=shown,
    )


def device_of(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda, but torch sees no GPU here; choose auto or cpu.")
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def _log_row(session: Session) -> Any:
    def log_row(title: str, row: Row) -> None:
        session.log(f"evaluation/{title}/{row.suite}", 0, {row.metric: row.value})

    return log_row
