"""The stages of a run, each done once: put back if the run has finished it, fetched if another job has, else computed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from alignlab.assembly import device_of
from alignlab.folders import STORE
from alignlab.models.policy import Policy
from alignlab.preparation import Plan
from alignlab.tracking.ledger import Ledger
from alignlab.training import processes
from alignlab.training.stages import DONE, METRICS, Session, Stage, StageStore, Work, stage_key
from alignlab.training.validation import Validation

log = logging.getLogger(__name__)
WITHOUT_INFLUENCE = ("name", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps")
"""Keys of the trainer's config that change what is written, and not what is computed."""


def stage_keys(plan: Plan) -> list[str]:
    """A key for each stage, in order; each depends on those before it."""
    config = plan.config
    shared: dict[str, Any] = {
        "model": [config.model, config.model.cache_key(), plan.method.start],
        "tuner": [config.tuner, config.tuner.cache_key()],
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
