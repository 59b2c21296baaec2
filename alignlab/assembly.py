"""From a typed config to a run: the folder, the plan, the policy, the stages, the evaluation and the report."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig

from alignlab.config import GROUPS, RunConfig, parse
from alignlab.data.encode import Limits
from alignlab.data.source import Source
from alignlab.errors import RunFolderError
from alignlab.evaluation.report import Report, write_report
from alignlab.evaluation.suite import Bench
from alignlab.evaluation.sweep import Row, sweep
from alignlab.models.backbone import load as load_backbone
from alignlab.models.backbone import load_codec, skeleton
from alignlab.models.export import export_plain
from alignlab.models.policy import Policy
from alignlab.models.text import Codec
from alignlab.plots import draw_curves, draw_dial
from alignlab.provenance import environment
from alignlab.tracking import Identity
from alignlab.tracking.ledger import Ledger
from alignlab.training.method import Method, Work
from alignlab.training.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Everything that can be known before weights are loaded. `learned` of `parameters` are trained."""

    config: RunConfig
    source: Source
    codec: Codec
    limits: Limits
    method: Method
    works: tuple[Work, ...]
    learned: int
    parameters: int


def folder_of(config: RunConfig) -> Path:
    """The run's folder: as given, or by title, fingerprint and seed."""
    if config.folder:
        return Path(config.folder)
    return Path(config.paths.runs) / f"{config.title}-{config.fingerprint}" / f"seed-{config.seed}"


@contextmanager
def open_session(config: RunConfig) -> Iterator[Session]:
    """The run folder with its ledger and tracker, closed as done or as failed.

    Raises RunFolderError for a folder that another config made.
    """
    folder = folder_of(config)
    ledger = Ledger(folder)
    _refuse_other(ledger, config)
    if config.force:
        _forget(folder)
    ledger.write("config.json", {"fingerprint": config.fingerprint, "seed": config.seed, **config.plain})
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config.plain), sort_keys=False), encoding="utf-8")
    ledger.write("env.json", environment())
    ledger.status("running")
    tracker = GROUPS["tracking"][config.tracking.name].build(config.tracking, _identity(config, folder))
    device = _device(config.trainer.device)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    session = Session(folder, Path(config.paths.runs) / ".store", ledger, tracker, config.trainer, device, config.seed)
    try:
        yield session
    except BaseException as error:
        ledger.status("failed", error=f"{type(error).__name__}: {error}")
        tracker.close(failed=True)
        raise
    ledger.status("done")
    tracker.close(failed=False)


def finished(config: RunConfig) -> Path | None:
    """The report of this very run, if it has been done before and is not to be done again."""
    folder = folder_of(config)
    ledger = Ledger(folder)
    _refuse_other(ledger, config)
    status = ledger.read("status.json")
    report = folder / "report.json"
    return report if status and status["state"] == "done" and report.is_file() and not config.force else None


def make_plan(config: RunConfig) -> Plan:
    """Reads and encodes the data and counts the parameters; no weights yet."""
    source = GROUPS["data"][config.data.name].build(config.data)
    method = GROUPS["method"][config.method.name].build(config.method)
    codec = load_codec(config.model)
    shape = skeleton(config.model)
    tuner = GROUPS["tuner"][config.tuner.name].build(config.tuner, shape)
    learned = sum(parameter.numel() for parameter in tuner.parameters())
    limits = _limits(config, codec, int(shape.config.max_position_embeddings))
    for stage in method.stages:
        stage.check(config.trainer)
    works = tuple(stage.prepare(source, codec, limits) for stage in method.stages)
    return Plan(config, source, codec, limits, method, works, learned, shape.num_parameters())


def build_policy(config: RunConfig, start: str, device: str) -> Policy:
    """The backbone with a new tuner in it, both decided by the seed."""
    backbone = load_backbone(config.model, start=start, seed=config.seed, device=device)
    torch.manual_seed(config.seed)
    tuner = GROUPS["tuner"][config.tuner.name].build(config.tuner, backbone.model)
    return Policy(backbone, tuner, shared_prefix=config.trainer.shared_prefix)


def run_stages(plan: Plan, policy: Policy, session: Session) -> None:
    """Each stage in order: put back if it is finished, else run from its last checkpoint."""
    for stage, work in zip(plan.method.stages, plan.works, strict=True):
        folder = session.stage_folder(stage.name)
        ledger = Ledger(folder)
        if ledger.read("done.json"):
            log.info("%s: done before, restored", stage.name)
            stage.restore(policy, folder)
            continue
        stage.run(policy, work, session)
        ledger.write("done.json", {"steps": work.steps})


def evaluate(plan: Plan, policy: Policy, session: Session) -> list[Row]:
    """Every fitting suite at every strength of the control."""
    config = plan.config
    bench = Bench(policy, plan.source, plan.limits, config.evaluation)
    if not config.suites:
        return []
    return sweep(bench, config.suites, config.control.name, config.control.strengths, _log_row(session))


def report(plan: Plan, rows: list[Row], session: Session) -> Report:
    """report.json, the figures, and the tracker's table."""
    config = plan.config
    names = {
        "fingerprint": config.fingerprint,
        **{group: getattr(config, group).name for group in ("method", "tuner", "model", "data")},
        "seed": config.seed,
        "parameters": {"learned": plan.learned, "all": plan.parameters},
        "rows": {s.name: asdict(w.account) for s, w in zip(plan.method.stages, plan.works, strict=True)},
    }
    made = write_report(session.ledger, names, rows)
    figures = [draw_curves(session.ledger, session.folder / "curves.png")]
    if config.control.figure and rows:
        figures.append(draw_dial(rows, session.folder / "dial.png"))
    session.tracker.results([asdict(row) for row in rows], figures)
    return made


def load(folder: str | Path, device: str = "auto") -> Policy:
    """The policy of a finished run: `load("runs/.../seed-0").respond(prompts, strength=..., ...)`.

    Raises RunFolderError where the folder holds no finished run.
    """
    folder = Path(folder)
    status = Ledger(folder).read("status.json")
    if not status or status["state"] != "done":
        state = status["state"] if status else "not a run folder"
        raise RunFolderError(f"{folder} holds no finished run ({state}); give the folder that has report.json in it.")
    config = parse(DictConfig(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))))
    method: Method = GROUPS["method"][config.method.name].build(config.method)
    policy = build_policy(config, method.start, _device(device))
    for stage in method.stages:
        stage.restore(policy, folder / "stages" / stage.name)
    return policy


def export(folder: Path, to: Path, dtype: str) -> float:
    """A run as a plain checkpoint; returns the largest difference of logits between the run and the reloaded checkpoint.

    Raises ModelError where the tuner has no plain form in this architecture (see its card).
    """
    policy = load(folder, device="cpu")
    tuned = getattr(policy.knob, "module", policy.model)
    return export_plain(tuned, policy.backbone.codec.tokenizer, to, getattr(torch, dtype))


def _refuse_other(ledger: Ledger, config: RunConfig) -> None:
    made_by = ledger.read("config.json")
    if made_by is None:
        if ledger.folder.is_dir() and any(ledger.folder.iterdir()):
            raise RunFolderError(f"{ledger.folder} is not empty and holds no run; give another folder.")
        return
    if (made_by["fingerprint"], made_by["seed"]) != (config.fingerprint, config.seed):
        raise RunFolderError(
            f"{ledger.folder} was made by another config (fingerprint {made_by['fingerprint']}, seed {made_by['seed']}; this"
            f" one is {config.fingerprint}, seed {config.seed}); give another folder or remove it."
        )


def _forget(folder: Path) -> None:
    """Removes what an earlier run of the same config left, so that force=true begins at the start."""
    shutil.rmtree(folder / "stages", ignore_errors=True)
    for name in ("metrics.jsonl", "report.json", "status.json"):
        (folder / name).unlink(missing_ok=True)


def _limits(config: RunConfig, codec: Codec, context: int) -> Limits:
    return Limits(min(config.data.max_tokens or context, context), config.data.too_long, len(codec.head))


def _identity(config: RunConfig, folder: Path) -> Identity:
    shown: dict[str, Any] = {key: value for key, value in config.plain.items() if key != "paths"}
    return Identity(
        id=f"{config.fingerprint}-{config.seed}",
        name=f"{config.title}-{config.seed}",
        group=getattr(config.tracking, "group", None) or config.title,
        job_type=config.method.name,
        tags=(config.method.name, config.tuner.name, config.model.name, config.data.name),
        folder=folder,
        config=shown,
    )


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def _log_row(session: Session) -> Any:
    def log_row(row: Row) -> None:
        session.log(f"evaluation/strength {row.strength:g}/{row.suite}", 0, {row.metric: row.value})

    return log_row
