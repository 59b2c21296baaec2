"""From a plan to a trained policy: the session of a run folder, the policy, the stages, each computed once."""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from alignlab.config import GROUPS, STORE, RunConfig, folder_of
from alignlab.errors import AlignlabError, ConfigError
from alignlab.files import environment
from alignlab.models.policy import Policy
from alignlab.planning import Plan
from alignlab.records import LabelSet
from alignlab.tracking import Identity, NoTracker, Tracker
from alignlab.tracking.ledger import Ledger
from alignlab.training import processes
from alignlab.training.config import TrainerConfig
from alignlab.training.stages import DONE, METRICS, Session, Stage, StageStore, Work, stage_key
from alignlab.training.validation import Validation

log = logging.getLogger(__name__)
CONTROL = "control"
"""Folder of a run with the configuration of its control, so that it loads without its data."""
LABELS = "labels.json"
"""File of a run with the labels of its texts, likewise."""
WITHOUT_INFLUENCE = ("name", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps")
"""Keys of the trainer's config that change what is written, and not what is computed."""


@contextmanager
def open_session(config: RunConfig) -> Iterator[Session]:
    """The run folder with its ledger and tracker, closed as done or as failed, or left to be resumed."""
    if not processes.is_main_process():
        with _worker(config) as session:
            yield session
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
    session = _session(config, ledger, tracker, device)
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
    session = _session(config, processes.SilentLedger(folder), NoTracker(), device_of(config.trainer.device))
    try:
        with session.preemption.heeded(lambda: None):
            yield session
    except AlignlabError:
        raise  # the main process's too, who writes it down
    except Exception as error:
        processes.failed(Ledger(folder), error)
        raise


def _session(config: RunConfig, ledger: Ledger, tracker: Tracker, device: str) -> Session:
    """The session of a process, with as many threads as the run asks for."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    store = Path(config.paths.runs) / STORE
    return Session(folder_of(config), store, ledger, tracker, config.trainer, device, config.seed)


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
    attached = GROUPS["tuner"][tuner.name].build(tuner, backbone.model, control)
    policy = Policy(backbone, attached, packing=trainer.packing, pass_gib=trainer.pass_gib)
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


def stage_keys(plan: Plan) -> list[str]:
    """A key for each stage, in order; each depends on those before it."""
    config = plan.config
    shared: dict[str, Any] = {
        "model": [config.model, plan.method.start],
        "tuner": config.tuner,
        "control": None if plan.control is None else plan.control.to_dict(),
        "trainer": {key: value for key, value in vars(config.trainer).items() if key not in WITHOUT_INFLUENCE},
        "device": device_of(config.trainer.device),
        "processes": processes.count(),
        "seed": config.seed,
        "validated": plan.validated,
    }
    keys: list[str] = []
    for stage, work in zip(plan.method.stages, plan.works, strict=True):
        keys.append(stage_key(stage, work, {**shared, "before": keys}))
    return keys


def found(plan: Plan, keys: Sequence[str]) -> set[str]:
    """The stages that another run has done already, by their keys."""
    store = StageStore(Path(plan.config.paths.runs) / STORE / "stages")
    return {stage.name for stage, key in zip(plan.method.stages, keys, strict=True) if store.holds(key)}


def run_stages(plan: Plan, keys: Sequence[str], policy: Policy, session: Session) -> None:
    """Leaves every stage finished, in the run's folder and in the policy."""
    store = StageStore(session.store / "stages")
    wanted = plan.config.trainer.validation
    if plan.validated and wanted:
        session = replace(session, validation=Validation(wanted, plan.validated.measure))
    for stage, work, key in zip(plan.method.stages, plan.works, keys, strict=True):
        folder = session.stage_folder(stage.name)
        if processes.by_main_process((folder / DONE).is_file):
            log.info("%s: done before, restored", stage.name)
            stage.restore(policy, folder)
            continue
        with store.alone(key) if processes.is_main_process() else nullcontext():
            if not plan.config.force and processes.by_main_process(partial(_fetch, stage, key, store, session)):
                stage.restore(policy, folder)
            else:
                _compute(stage, work, policy, session)
                processes.by_main_process(partial(_keep, stage, work, key, store, session))


def _fetch(stage: Stage, key: str, store: StageStore, session: Session) -> bool:
    """Puts the stage into the run's folder, if another run has done it."""
    if not store.holds(key):
        return False
    log.info("%s: another run has done it, restored from the store", stage.name)
    store.fetch(key, session.stage_folder(stage.name))
    _repeat(stage, session)
    return True


def _compute(stage: Stage, work: Work, policy: Policy, session: Session) -> None:
    """One that learns does so in all processes; what one that looks has seen is read by the others."""
    if stage.trains:
        stage.run(policy, work, session)
        return
    processes.by_main_process(lambda: stage.run(policy, work, session))
    if not processes.is_main_process():
        stage.restore(policy, session.stage_folder(stage.name))


def _keep(stage: Stage, work: Work, key: str, store: StageStore, session: Session) -> None:
    """Declares the stage done, here and for every other run."""
    ledger = Ledger(session.stage_folder(stage.name))
    ledger.write(METRICS, {"lines": [line for line in session.ledger.history() if _is_of(stage, line)]})
    ledger.write(DONE, {"steps": work.steps})
    store.keep(key, ledger.folder)


def _repeat(stage: Stage, session: Session) -> None:
    """Logs what the stage had logged when it was computed."""
    kept = Ledger(session.stage_folder(stage.name)).read(METRICS) or {"lines": []}
    for line in kept["lines"]:
        values = {key.removeprefix(f"{stage.name}/"): value for key, value in line.items() if key != "step"}
        session.log(stage.name, line["step"], values)


def _is_of(stage: Stage, line: Mapping[str, Any]) -> bool:
    return any(key.startswith(f"{stage.name}/") for key in line)


def _leave(session: Session) -> None:
    """A preempted run: another process resumes it."""
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
