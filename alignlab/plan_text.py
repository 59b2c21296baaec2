"""The plan of a run as it is printed, the same text before a run and with plan=true; and its time, by that of like runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignlab.config import STORE, RunConfig, folder_of
from alignlab.evaluation import SUITES
from alignlab.evaluation.judging import Question, cost, read_questions
from alignlab.memory import misfit
from alignlab.planning import Plan
from alignlab.tracking.ledger import DROPPED, Ledger, now, state_of
from alignlab.training import processes
from alignlab.training.stages import DONE, TrainStage, Work
from alignlab.training.trainer import MARK
from alignlab.tuners.config import FormConfig

log = logging.getLogger(__name__)

NAMED = 3
"""Rows that are dropped, of which a plan tells the names."""
EVALUATION = "evaluation"
"""In the place of a stage's name: all of a run's evaluation."""
FOLDER = "paces"
"""Below the store that runs share: a file for each kind of stage, with a line for each time that its steps were timed."""


def show(plan: Plan, shared: Collection[str], console: Console) -> None:
    """What a run will do, the same text before it and with plan=true: who, rows kept and dropped and why, a row as it is fed,
    steps, rates, memory, time, suites left out. `shared`: the stages that another run has done."""
    config = plan.config
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        "run",
        f"method={config.method.name} tuner={config.tuner.name} model={config.model.name} data={config.data.name}",
    )
    if plan.method.stages:
        share = 100 * plan.learned / plan.parameters
        table.add_row("tuner", f"{plan.learned:,} parameters, on a backbone of {plan.parameters:,} ({share:.3g} %)")
        table.add_row("configs", _configs(config))
        table.add_row("layout", f"expected: {plan.rows}")
    else:
        table.add_row("tuner", "nothing is trained")
    for line in commits(config):
        table.add_row("revision", line)
    trained_on = [stage.split for stage in plan.method.stages if isinstance(stage, TrainStage)]
    for name in dict.fromkeys((*trained_on, "train", "test")):
        origin = plan.source.split(name).origin if name in plan.source.readers else None
        if origin:
            table.add_row(f"data {name}", origin.sentence())
    for stage, work, need in zip(plan.method.stages, plan.works, plan.needs, strict=True):
        doing = f"{work.steps} steps, {work.note}" if stage.trains else work.note
        table.add_row(f"stage {stage.name}", f"{doing}; another run has done it" if stage.name in shared else doing)
        table.add_row("", work.account.sentence())
        if need:
            table.add_row("", need.sentence())
            if too_much := misfit(need, config):
                table.add_row("", too_much)
        for task, weight in (work.weights or {}).items():
            table.add_row("", _task(work, task, weight))
    if plan.fed:
        table.add_row("row as fed", Text(plan.fed))
    if plan.classes:
        table.add_row("classes", _classes(plan))
    if plan.validated:
        table.add_row("validation", _validation(plan))
    where = ", ".join(point.mixture or f"{point.strength:g}" for point in plan.points)
    suites = ", ".join(config.suites) or "none"
    at = "classes" if plan.classes else "strengths"
    table.add_row("evaluation", f"{suites}; at {at} {where}" if config.suites else suites)
    if plan.decoding:
        decoding, weights = plan.decoding
        table.add_row("decoding", decoding.sentence(weights))
    if plan.held_out:
        table.add_row("", f"held-out pairs: {plan.held_out.account.sentence()}")
    if plan.held_out_items:
        table.add_row("", f"held-out responses: {plan.held_out_items.account.sentence()}")
    if plan.held_out_labels:
        table.add_row("", f"held-out texts: {plan.held_out_labels.account.sentence()}")
    if any("verdicts" in SUITES[suite].provides(config.evaluation) for suite in config.suites):
        table.add_row("judge", _judging(plan))
    for left_out in config.not_measured:
        table.add_row("", left_out)
    if dropped := [each.row for each, _ in plan.dropped()]:
        more = f" and {len(dropped) - NAMED} more" if len(dropped) > NAMED else ""
        table.add_row("dropped", Text(f"{', '.join(dropped[:NAMED])}{more}; a run lists each, with its reason, in {DROPPED}"))
    table.add_row("time", _time(plan, shared))
    table.add_row("folder", f"{folder_of(config)} ({_beginning(config)})")
    console.print(table)


def commits(config: RunConfig) -> list[str]:
    """The commit of what is on the hub, and whether it was given or is the newest that is known."""
    on_hub = {"model": config.model.source == "hub", "data": config.data.from_hub and hasattr(config.data, "revision")}
    told = []
    for group in (group for group, there in on_hub.items() if there):
        part: Any = getattr(config, group)
        commit, way = part.commit, f"{group}.revision=COMMIT keeps it"
        found = f"commit {commit}" if commit else f"the newest, whose commit is not known here; {way}"
        told.append(f"{group}={part.name}: {found}{'' if part.revision or not commit else f', the newest known here; {way}'}")
    return told


def _beginning(config: RunConfig) -> str:
    """Whether a run begins, or goes on from what is in its folder."""
    state = state_of(folder_of(config)).name
    if config.force and state != "missing":
        return f"{state} before; force=true begins it again"
    known = {"missing": "new", "done": "done before, and repeated"}
    saved = any(next(folder_of(config).glob(f"stages/*/{mark}"), None) for mark in (DONE, f"checkpoint-*/{MARK}"))
    rest = "it goes on where that ended" if saved else "it begins anew, since nothing was saved"
    return known.get(state, f"{state} before; {rest}")


def _time(plan: Plan, shared: Collection[str]) -> str:
    """How long stages and evaluation will take by like runs, as far as there are any."""
    paces = Paces(plan.config)
    known: dict[str, float] = {}
    unknown, where = [], []
    stages = [(stage.name, work.steps) for stage, work in zip(plan.method.stages, plan.works, strict=True) if stage.trains]
    asked = [(name, steps) for name, steps in stages if name not in shared]
    for name, times in [*asked, *([(EVALUATION, 1)] if plan.config.suites else [])]:
        pace = paces.of(name)
        if pace is None:
            unknown.append(name)
        else:
            known[name] = times * pace.seconds
            where.append(pace.here)
    parts = [f"{name} {lasting(seconds)}" for name, seconds in known.items()]
    if not parts:
        return "no like run was made here, so it is not known; a run tells it in its first seconds" if unknown else "moments"
    total = lasting(sum(known.values())) if len(parts) > 1 and not unknown else ""
    lacking = f"; {', '.join(unknown)} not known" if unknown else ""
    measured = f", as like runs took {' and '.join(dict.fromkeys(where))}; loading is not counted"
    return f"{'about ' + total + ': ' if total else 'about '}{', '.join(parts)}{lacking}{measured}"


def _classes(plan: Plan) -> str:
    """The form of each class, with its rows, placeholder ids and edges."""
    assert plan.classes is not None
    edges = f"; scores cut at {', '.join(f'{edge:g}' for edge in plan.classes.edges)}" if plan.classes.edges else ""
    placeholders = f"; placeholder ids {', '.join(map(str, plan.control.placeholders))}" if plan.control.embeds else ""
    held = Counter(group.members[0].control for group in plan.works[0].groups)
    named = ", ".join(f"{name} ({held[name]})" for name in plan.classes.names)
    return f"{named}, each by a {plan.control.form}{placeholders}{edges}"


def _task(work: Work, task: str, weight: float) -> str:
    """What a stage has of one of several sources."""
    own = [group for group in work.groups if group.task == task]
    tokens = sum(len(member.ids) for group in own for member in group.members)
    return f"of {task}: {len(own)} rows, {tokens:,} tokens, weight {weight:.3g}"


def _validation(plan: Plan) -> str:
    """What is measured while which stages train."""
    wanted = plan.config.trainer.validation
    assert wanted is not None
    assert plan.validated is not None
    every = f"{wanted.every_steps} steps" if wanted.every_steps is not None else f"{wanted.every_epochs:g} epochs"
    stages = ", ".join(stage.name for stage in plan.method.stages if stage.validated(plan.config.trainer))
    records = len(plan.validated.source.split("test").records)
    kept = "; ends with the best" if wanted.keep_best else ""
    return (
        f"{wanted.suite}/{wanted.metric} every {every} of {stages}{kept};"
        f" at most {wanted.rows} of {records} records of split {wanted.split}"
    )


def _judging(plan: Plan) -> str:
    """What the judge will be asked at most."""
    evaluation = plan.config.evaluation
    judge, prompts = evaluation.judge, [] if evaluation.judge.questions else plan.source.prompts()[: evaluation.prompts]
    questions = [Question((each,)) for each in prompts]
    if judge.questions:
        questions = read_questions(Path(judge.questions), judge.references)
    return cost(judge, questions, evaluation.max_new_tokens, len(plan.points))


def _configs(config: RunConfig) -> str:
    """Where the tuner's and the method's numbers came from, the command line aside."""
    rates = f"sizing/tuner/{config.sizing.tuner}" if config.sizing.tuner else f"tuner/{config.tuner.name}"
    if isinstance(config.control, FormConfig):
        rates = f"sizing/control/{config.sizing.control}" if config.sizing.control else f"control/{config.control.name}"
    steps = f"sizing/method/{config.sizing.method}" if config.sizing.method else f"method/{config.method.name}"
    return f"{rates}, {steps}"


@dataclass(frozen=True)
class Pace:
    """Seconds that a step, or an evaluation, took in a like run; `machine`: where."""

    seconds: float
    machine: str

    @property
    def here(self) -> str:
        """Where it was measured, for a sentence."""
        return "on this machine" if self.machine == this_machine() else f"on {self.machine}"


class Paces:
    """How long like runs took: the ledger of times in the folder of runs. Runs are alike that have the same model, tuner,
    batch, trainer and length of rows; rates and seeds do not count."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._ledger = Ledger(Path(config.paths.runs) / STORE / FOLDER)

    def of(self, stage: str) -> Pace | None:
        """Of a stage's step, or of EVALUATION as a whole: on this machine, else as last measured on another; None if no like
        run was made."""
        seen = self._seen(stage)
        machine = this_machine() if this_machine() in seen else next(reversed(seen), None)
        return None if machine is None else Pace(seen[machine], machine)

    def note(self, stage: str, seconds: float) -> None:
        """Writes down what was measured on this machine, in the main process alone. A full disk is a warning."""
        if not processes.is_main_process():
            return
        about = {group: getattr(self._config, group).name for group in ("method", "tuner", "model", "data")}
        line = {**about, "stage": stage, "machine": this_machine(), "seconds": seconds, "time": now()}
        try:
            self._ledger.append(self._file(stage), line)
        except OSError as error:
            log.warning("how long %s took is not kept for the plans of other runs (%s)", stage, error.strerror)

    def _seen(self, stage: str) -> dict[str, float]:
        """From each machine to its latest seconds, the machine of the last line last."""
        seen: dict[str, float] = {}
        for line in self._ledger.lines(self._file(stage)):
            machine, seconds = line.get("machine"), line.get("seconds")
            if isinstance(machine, str) and isinstance(seconds, float):
                seen.pop(machine, None)
                seen[machine] = seconds
        return seen

    def _file(self, stage: str) -> str:
        plain = self._config.plain
        rows = {key: value for key, value in plain["data"].items() if key in ("name", "max_tokens")}
        read: dict[str, Any] = {"model": plain["model"], "tuner": _without_rates(plain["tuner"]), "data": rows, "stage": stage}
        if stage == EVALUATION:
            read |= {key: plain[key] for key in ("evaluation", "control")} | {"suites": list(self._config.suites)}
        else:
            fit = self._config.method.fits().get(stage)
            read |= {"method": plain["method"]["name"], "batch": fit.batch if fit else None}
        read["trainer"] = {key: value for key, value in plain["trainer"].items() if not key.endswith("_every_steps")}
        digest = hashlib.sha256(json.dumps([read, processes.count()], sort_keys=True, default=str).encode()).hexdigest()
        return f"{digest[:24]}.jsonl"


def _without_rates(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if not key.endswith("_rate")}


def this_machine() -> str:
    """The GPU that torch sees, or the processors of this host."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{os.cpu_count()} CPU cores of {socket.gethostname()}"


def lasting(seconds: float) -> str:
    """A length of time to two digits: 8 s, 12 min, 3.5 h."""
    for size, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {name}" if seconds / size < 10 else f"{seconds / size:.0f} {name}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
