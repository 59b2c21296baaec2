"""From a plan to a trained policy: the session of a run folder, the policy, the stages, each computed once."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import secrets
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

from alignlab.config import GROUPS, STORE, WITH_FILES, RunConfig, folder_of, portable
from alignlab.errors import AlignlabError
from alignlab.evaluation.report import BATCHES, ROWS
from alignlab.files import PART, code_version, contents, environment, seal, storage_error, write_whole
from alignlab.models.policy import Policy
from alignlab.plan_text import Paces
from alignlab.planning import Plan
from alignlab.records import LabelSet
from alignlab.tracking import Identity, NoTracker, Tracker
from alignlab.tracking.ledger import DROPPED, QUEUED, REPORT, STATUS, Ledger, state_of
from alignlab.training import processes
from alignlab.training.arguments import device_of
from alignlab.training.config import TrainerConfig
from alignlab.training.stages import (
    DONE,
    METRICS,
    Session,
    Stage,
    StageStore,
    Work,
    begin,
    cache_key,
    of_result,
    set_aside,
    stage_key,
    stale,
)
from alignlab.training.trainer import MARK, drop_optimizers
from alignlab.training.validation import Validation

log = logging.getLogger(__name__)
CONTROL = "control"
"""Folder of a run with the configuration of its control, so that it loads without its data."""
LABELS = "labels.json"
"""File of a run with the labels of its texts, likewise."""
TRACKED = "tracker.json"
"""File of a run with what its name in a tracker ends with."""
NOT_SHOWN = ("paths", "folder", "plan", "force", "rerun", "sweep")
"""Keys of the config that a tracker does not get."""
WITHOUT_INFLUENCE = ("name", "checkpoint_every_steps", "keep_checkpoints", "keep_optimizer", "log_every_steps")
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
    if config.force or state_of(folder).name == "done":  # of another version, and to be repeated
        _forget(folder)
    _tidy(folder)
    device = device_of(config.trainer.device)
    written = portable(config)
    ledger.write("config.json", {"fingerprint": config.fingerprint, "seed": config.seed, **written})
    write_whole(folder / "config.yaml", yaml.safe_dump(written, sort_keys=False))
    ledger.write("env.json", {**environment(), "processes": processes.count(), "contents": _contents(config)})
    ledger.status("running", host=socket.gethostname())
    processes.meet()
    tracker = GROUPS["tracking"][config.tracking.name].build(config.tracking, _identity(config, folder))
    session = _session(config, ledger, tracker, device)
    try:
        with session.preemption.heeded(lambda: _leave(session)):
            yield session
    except KeyboardInterrupt as stop:
        ledger.status("interrupted")
        tracker.close(failed=True)
        raise KeyboardInterrupt(_left_behind(folder)) from stop
    except BaseException as error:
        if isinstance(error, SystemExit) and session.preemption.left:
            raise
        told = storage_error(error, folder)
        if told:
            _make_room(folder)
        try:
            processes.failed(ledger, told or error)
        finally:
            tracker.close(failed=True)
        if told:
            raise told from error
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


def list_dropped(plan: Plan, session: Session) -> None:
    """Writes a table of the dropped rows into the run's folder, by the main process; none where no row is dropped."""
    dropped = plan.dropped()
    if not processes.is_main_process():
        return
    if not dropped:
        (session.folder / DROPPED).unlink(missing_ok=True)
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file", "row", "reason", "dropped_from"))
    for each, counted_by in dropped:
        file, _, row = each.row.rpartition(":")
        table.writerow((file, row, each.reason, " ".join(counted_by)))
    named = text.getvalue().encode(errors="backslashreplace").decode()  # the name of a file may be no text
    write_whole(session.folder / DROPPED, named)


def _beginning(plan: Plan) -> dict[str, Any]:
    """What every stage starts from, and the evaluation of a run without any."""
    config = plan.config
    return {
        "model": [config.model, plan.method.start],
        "tuner": config.tuner,
        "control": None if plan.control is None else plan.control.to_dict(),
        "trainer": {key: value for key, value in vars(config.trainer).items() if key not in WITHOUT_INFLUENCE},
        "device": device_of(config.trainer.device),
        "processes": processes.count(),
        "threads": _threads(config.trainer),
        "seed": config.seed,
        "validated": plan.validated,
    }


def stage_keys(plan: Plan) -> list[str]:
    """A key for each stage, in order; each depends on those before it. The first of them that train the backbone alone do not
    depend on a tuner that leaves it to itself."""
    shared = _beginning(plan)
    alone = True
    keys: list[str] = []
    for stage, work in zip(plan.method.stages, plan.works, strict=True):
        watched = shared["validated"] if stage.validated(plan.config.trainer) else None
        alone = alone and stage.of_the_backbone and plan.config.tuner.leaves_backbone
        tuner = None if alone and not watched else shared["tuner"]  # what is measured on the way may ask for the tuner
        keys.append(stage_key(stage, work, {**shared, "tuner": tuner, "validated": watched, "before": keys}))
    return keys


def evaluation_key(plan: Plan, keys: Sequence[str]) -> str:
    """What decides the rows of a run's evaluation, as 24 hex digits; `keys`: of its stages."""
    held = (plan.held_out, plan.held_out_items, plan.held_out_labels)
    ids = [[[group.row, [m.ids for m in group.members]] for group in each.groups] for each in held if each]
    config, source = plan.config, plan.source
    records = (
        [(each.prompt, each.second, each.responses) for each in source.split("test").records]
        if "test" in source.readers
        else []
    )
    parts = [
        cache_key(_beginning(plan)),
        list(keys),
        cache_key([config.evaluation, config.control, list(config.suites), plan.points]),
        [ids, list(source.prompts()) if config.suites else []],
        [repr(records), code_version()],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _threads(trainer: TrainerConfig) -> int | None:
    """Threads of the CPU, which decide in which order it adds; None on a GPU, where they do not."""
    return (trainer.threads or torch.get_num_threads()) if device_of(trainer.device) == "cpu" else None


def found(plan: Plan, keys: Sequence[str]) -> set[str]:
    """The stages that another run has done already, by their keys; none where force=true computes them again."""
    if plan.config.force:
        return set()
    store = StageStore(Path(plan.config.paths.runs) / STORE / "stages")
    return {stage.name for stage, key in zip(plan.method.stages, keys, strict=True) if store.holds(key)}


def run_stages(plan: Plan, keys: Sequence[str], policy: Policy, session: Session) -> None:
    """Leaves every stage finished, in the run's folder and in the policy."""
    store = StageStore(session.store / "stages")
    processes.by_main_process(store.tidy)
    wanted = plan.config.trainer.validation
    if plan.validated and wanted:
        session = replace(session, validation=Validation(wanted, plan.validated.measure))
    for stage, work, key in zip(plan.method.stages, plan.works, keys, strict=True):
        folder = session.stage_folder(stage.name)
        if processes.by_main_process(partial(_is_done, stage, key, session)):
            log.info("%s: done before, restored", stage.name)
            stage.restore(policy, folder)
            processes.by_main_process(partial(_keep_still, folder, key, store))
            continue
        with store.alone(key) if processes.is_main_process() else nullcontext():
            if not plan.config.force and processes.by_main_process(partial(_fetch, stage, key, store, session)):
                stage.restore(policy, folder)
            else:
                processes.by_main_process(partial(begin, folder, key))
                _compute(stage, work, policy, session)
                if stage.name in session.paces:
                    Paces(plan.config).note(stage.name, session.paces[stage.name])
                processes.by_main_process(partial(_keep, stage, work, key, store, session))


def _is_done(stage: Stage, key: str, session: Session) -> bool:
    """Whether the run's folder has the result of this key. What it has of another key, or damaged, is set aside."""
    folder = session.stage_folder(stage.name)
    if why := stale(folder, key):
        aside = set_aside(folder)
        lines = session.ledger.take(lambda line: _is_of(stage, line))
        Ledger(aside).write(METRICS, {"lines": lines})
        log.warning("%s: what an earlier run has left %s; it is set aside as %s, and computed again", stage.name, why, aside)
    return (folder / DONE).is_file()


def _keep_still(folder: Path, key: str, store: StageStore) -> None:
    """Keeps a finished stage that a kill has kept out of the store, and removes what was begun there."""
    if not store.holds(key):
        with store.alone(key):
            store.keep(key, folder)


def _fetch(stage: Stage, key: str, store: StageStore, session: Session) -> bool:
    """Puts the stage into the run's folder, if another run has done it and it is whole."""
    if not store.holds(key):
        return False
    if why := store.damage(key):
        log.warning("%s: what another run has left in the store is damaged (%s), so it is computed again", stage.name, why)
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
    seal(ledger.folder, DONE, {"steps": work.steps, "key": key}, of_result)
    if not session.trainer.keep_optimizer:
        drop_optimizers(ledger.folder)
    store.keep(key, ledger.folder)


def _repeat(stage: Stage, session: Session) -> None:
    """Logs what the stage had logged when it was computed."""
    for line in Ledger(session.stage_folder(stage.name)).found(METRICS).get("lines", ()):
        values = {key.removeprefix(f"{stage.name}/"): value for key, value in line.items() if key != "step"}
        session.log(stage.name, line["step"], values)


def _is_of(stage: Stage, line: Mapping[str, Any]) -> bool:
    return any(key.startswith(f"{stage.name}/") for key in line)


def _leave(session: Session) -> None:
    """A preempted run: another process resumes it."""
    log.warning("stopped by a signal: %s", _left_behind(session.folder))
    session.ledger.status("preempted")
    session.tracker.pause()


def _forget(folder: Path) -> None:
    """Removes what an earlier run of the same config left, so that it begins at the start; its status first: a kill may come
    before the rest has gone."""
    for name in (STATUS, REPORT, "metrics.jsonl", ROWS, BATCHES, DROPPED):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "stages", ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Removes what a dead process had begun to write; the cluster's note is another process's."""
    for left in [*folder.glob(f"*{PART}"), *(folder / "stages").rglob(f"*{PART}")]:
        if not left.name.startswith(QUEUED):
            left.unlink(missing_ok=True)


def _make_room(folder: Path) -> None:
    """Removes checkpoints that were not finished, so that a full disk has room for the end of the run."""
    for checkpoint in folder.glob("stages/*/checkpoint-*"):
        if not (checkpoint / MARK).is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)


def _left_behind(folder: Path) -> str:
    """What is saved after an interruption, and from where the same command resumes."""
    marks = [mark for mark in folder.glob(f"stages/*/checkpoint-*/{MARK}") if not (mark.parents[1] / DONE).is_file()]
    if marks:
        last = max(marks, key=lambda mark: mark.stat().st_mtime_ns).parent
        return f"saved at step {last.name.rpartition('-')[2]} of stage {last.parent.name}; the same command resumes there"
    done = sorted(folder.glob(f"stages/*/{DONE}"), key=lambda mark: mark.stat().st_mtime_ns)
    if done:
        return f"stage {done[-1].parent.name} is saved; the same command resumes behind it"
    return "no checkpoint was made yet, so the same command begins anew"


def _contents(config: RunConfig) -> dict[str, list[str]]:
    """What the files that a config names held, by group: hashes, or the commit of the hub."""
    found = {group: contents(getattr(config, group)) for group in WITH_FILES}
    return {group: each for group, each in found.items() if each}


def _token(folder: Path) -> str:
    """What tells this run from the same one of somebody else in a project of a tracker; kept as long as the folder."""
    ledger = Ledger(folder)
    token = ledger.found(TRACKED).get("token")
    if not isinstance(token, str) or not token.isalnum():
        token = secrets.token_hex(3)
        ledger.write(TRACKED, {"token": token})
    return token


def _identity(config: RunConfig, folder: Path) -> Identity:
    shown = {key: value for key, value in portable(config).items() if key not in NOT_SHOWN}
    return Identity(
        id=f"{config.fingerprint}-{config.seed}-{_token(folder)}",
        name=f"{config.title}-{config.seed}",
        group=getattr(config.tracking, "group", None) or config.sweep or config.title,
        job_type=config.method.name,
        tags=(config.method.name, config.tuner.name, config.model.name, config.data.name),
        folder=folder,
        config=shown,
    )
