"""After training: the evaluation and the report of a run, and loading a finished run."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig
from peft import PeftConfig

from alignlab.card import write_cards
from alignlab.config import GROUPS, found_place, parts_of
from alignlab.errors import RunFolderError
from alignlab.evaluation.report import BATCHES, ROWS, Report, Row, write_report
from alignlab.evaluation.safe_range import measured_range, write_range
from alignlab.evaluation.suite import Begun, EvaluationContext, sweep
from alignlab.files import damage, places
from alignlab.models.policy import Policy
from alignlab.plan_text import EVALUATION, Paces
from alignlab.planning import Plan
from alignlab.plots import cost_among, draw_counts, draw_curves, draw_dial, draw_profile
from alignlab.records import LabelSet
from alignlab.running import CONTROL, LABELS, build_policy, evaluation_key
from alignlab.tracking.ledger import REPORT, STATUS, Ledger
from alignlab.training.arguments import device_of
from alignlab.training.collect import COUNTS, PROFILE
from alignlab.training.stages import DONE, Session
from alignlab.tuners.composed import compose
from alignlab.tuners.engines import CONFIG as ADAPTER

log = logging.getLogger(__name__)


def evaluate(plan: Plan, keys: Sequence[str], policy: Policy, session: Session) -> list[Row]:
    """Every fitting suite at every point of the control. Each is written down when it is there, and so is each batch of it; a
    run that was ended here resumes behind the last. `keys`: of the stages."""
    config = plan.config
    if not config.suites:
        return []
    key = evaluation_key(plan, keys)
    context = EvaluationContext(
        policy,
        plan.source,
        plan.held_out,
        config.evaluation,
        plan.classes,
        plan.held_out_items,
        plan.labels,
        plan.held_out_labels,
        _BegunInFile(session.ledger, key),
        session.store,
    )
    kept, begun = _Kept(session.ledger, key), time.monotonic()
    whole = not kept and not (session.folder / BATCHES).exists()
    rows = sweep(context, config.suites, plan.points, _log_row(session), kept)
    if whole:
        Paces(config).note(EVALUATION, time.monotonic() - begun)
    (session.folder / BATCHES).unlink(missing_ok=True)
    return rows


class _BegunInFile(Begun):
    """The batches of an evaluation so far, a line each in a file of the run, with a checksum. Those of another key are left
    out."""

    def __init__(self, ledger: Ledger, key: str) -> None:
        self._ledger, self._key = ledger, key
        self._found: dict[str, dict[int, Any]] = {}
        for line in ledger.lines(BATCHES):
            if line == self._line(*(line.get(part) for part in ("name", "batch", "values"))):
                self._found.setdefault(line["name"], {})[line["batch"]] = line["values"]

    def of(self, name: str) -> MutableMapping[int, Any]:
        """Those of a name; what is put there is written down."""
        return _Batches(self._found.get(name, {}), lambda number, values: self._write(name, number, values))

    def _write(self, name: str, number: int, values: Any) -> None:
        self._ledger.append(BATCHES, self._line(name, number, values))

    def _line(self, name: Any, number: Any, values: Any) -> dict[str, Any]:
        written = json.dumps([self._key, name, number, values]).encode()
        return {"name": name, "batch": number, "values": values, "checksum": hashlib.sha256(written).hexdigest()[:24]}


class _Batches(UserDict[int, Any]):
    """Values by the numbers of batches; `write` is told of new ones."""

    def __init__(self, found: dict[int, Any], write: Callable[[int, Any], None]) -> None:
        super().__init__()
        self.data, self._write = dict(found), write

    def __setitem__(self, number: int, values: Any) -> None:
        super().__setitem__(number, values)
        self._write(number, values)


class _Kept(MutableMapping[str, list[Row]]):
    """The rows of an evaluation so far, by point and suite, in a file of the run. Those of another key, and what cannot be
    read, are left behind."""

    def __init__(self, ledger: Ledger, key: str) -> None:
        self._ledger, self._key = ledger, key
        kept = ledger.found(ROWS)
        if kept.get("key") not in (None, key):
            log.info("evaluation: earlier rows are of other code, libraries, data or settings; it begins anew")
        try:
            found = kept["rows"].items() if kept.get("key") == key else ()
            self._rows = {name: [Row(**row) for row in rows] for name, rows in found}
        except (AttributeError, KeyError, TypeError):
            log.warning("%s cannot be read, so the evaluation begins anew", ledger.folder / ROWS)
            self._rows = {}

    def __getitem__(self, name: str) -> list[Row]:
        return self._rows[name]

    def __setitem__(self, name: str, rows: list[Row]) -> None:
        self._rows[name] = rows
        written = {name: [asdict(row) for row in each] for name, each in self._rows.items()}
        self._ledger.write(ROWS, {"key": self._key, "rows": written}, indent=None)

    def __delitem__(self, name: str) -> None:
        del self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def report(plan: Plan, rows: list[Row], session: Session) -> Report:
    """report.json, the figures, and the tracker's table."""
    config = plan.config
    names = {
        "fingerprint": config.fingerprint,
        **{group: getattr(config, group).name for group in ("method", "tuner", "model", "data")},
        "seed": config.seed,
        "parameters": {"learned": plan.learned, "all": plan.parameters},
        "rows": {name: account.counts() for name, account in plan.accounts.items()},
    }
    made = write_report(session.ledger, names, rows)
    turned = [row for row in rows if config.control.strengths and row.control == plan.points[-1].control]
    # A trial measures too little to say at which strengths a run holds.
    if config.scale is None and (safe := measured_range(turned, config.evaluation.safe_range)):
        write_range(safe, result_of(session.folder))
        log.info("%s", safe.sentence)
    write_cards(session.folder)
    figures = [draw_curves(session.ledger, session.folder / "curves.png"), *_profiles(plan, session)]
    measured = [row for row in turned if row.n]
    if config.control.figure and measured:
        figures.append(draw_dial(measured, session.folder / "dial.png"))
        if cost_among(measured) is None:
            log.info(
                "dial.png shows no cost of a strength, since none was measured: evaluation.text.path=FILE, a text, measures one"
            )
    session.tracker.results([row.plain for row in made.rows], figures)
    return made


def _profiles(plan: Plan, session: Session) -> list[Path]:
    """A figure for each stage that has left a profile of what it saw, or counts of what was chosen."""
    ledgers = {stage.name: Ledger(session.stage_folder(stage.name)) for stage in plan.method.stages}
    drawn = []
    for file, draw in ((PROFILE, draw_profile), (COUNTS, draw_counts)):
        found = {name: ledger.found(file) for name, ledger in ledgers.items()}
        drawn += [draw(each, session.folder / f"{name}.png") for name, each in found.items() if each]
    return drawn


def _inside(folder: Path) -> str:
    """The runs in a folder that is none itself, for a sentence."""
    found = sorted(each.parent.name for each in folder.glob(f"*/{REPORT}"))
    return f", such as {folder / found[0]}" if found else ""


def load(folder: str | Path | Mapping[str, str | Path], device: str = "auto", *, trust_remote_code: bool = False) -> Policy:
    """The policy of a finished run: `load("runs/.../seed-0").respond(prompts, strength=..., ...)`. Its data is not needed.

    Several runs with adapters of one backbone, by names of your choice, become one policy, whose strength is a number for all
    or one by each name: `load({"mood": RUN, "tone": RUN}).respond(prompts, strength={"mood": 1.5, "tone": 0.5}, ...)`.

    Raises RunFolderError where the folder holds no finished run, or a damaged one, and ModelError for runs that do not compose.

    A model that brings code of its own is refused, whatever the run's config says, unless the caller allows it by
    `trust_remote_code`: the code runs with the caller's rights.
    """
    if isinstance(folder, Mapping):
        return compose({name: load(each, device, trust_remote_code=trust_remote_code) for name, each in folder.items()})
    folder = Path(folder)
    status = Ledger(folder).read(STATUS)
    if not status or status.get("state") != "done":
        state = status.get("state") if status else "not a run folder"
        raise RunFolderError(
            f"{folder} holds no finished run ({state}); give the folder that has report.json in it{_inside(folder)}."
        )
    plain = config_of(folder)
    parts = parts_of(DictConfig(plain), ("method", "tuner", "model", "trainer"))
    if parts["model"].trust_remote_code and not trust_remote_code:
        raise RunFolderError(
            f"{folder} asks to run code that its model brings; if you trust its author, allow it: trust_remote_code=True, or"
            " --trust-remote-code."
        )
    for part in parts.values():
        for place in places(part):
            if isinstance(value := getattr(part, place), str):
                setattr(part, place, found_place(value, folder))
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
        if wrong := damage(folder / "stages" / stage.name, DONE):
            raise RunFolderError(f"{folder}: stage {stage.name} is damaged ({wrong}); repeat its run, which computes it again.")
        stage.restore(policy, folder / "stages" / stage.name)
    return policy


def config_of(folder: Path) -> dict[str, Any]:
    """The config that a run's folder keeps. Raises RunFolderError for one that cannot be read."""
    try:
        plain = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunFolderError(f"{folder}/config.yaml cannot be read ({str(error).splitlines()[0]}); repeat its run.") from error
    if not isinstance(plain, dict) or not isinstance(plain.get("seed"), int):
        raise RunFolderError(f"{folder}/config.yaml is no config of a run; repeat its run.")
    return plain


def result_of(run: Path) -> Path:
    """The folder with what a run has learned: its adapter where it has one, else its last stage's result, and the run's own
    where it has learned nothing; of a folder that holds an adapter itself, that folder."""
    if (run / ADAPTER).is_file():
        return run
    method = parts_of(DictConfig(config_of(run)), ("method",))["method"]
    stages = [stage.name for stage in GROUPS["method"][method.name].build(method).stages if stage.stays]
    for stage in reversed(stages):
        result = run / "stages" / stage / "result"
        for place in (result, *sorted(folder for folder in result.glob("*") if folder.is_dir())):
            if (place / ADAPTER).is_file():
                return place
    return run / "stages" / stages[-1] / "result" if stages else run


def _log_row(session: Session) -> Any:
    def log_row(title: str, row: Row) -> None:
        session.log(f"evaluation/{title}/{row.suite}", 0, {row.metric: row.value})

    return log_row
