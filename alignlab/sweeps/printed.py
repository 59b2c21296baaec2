"""The plan of a sweep, and how it ended, as they are printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from alignlab.command_line import run_command
from alignlab.errors import ConfigError
from alignlab.files import replaced_alone
from alignlab.sweeps.jobs import PlannedJob, steps_computed_once
from alignlab.tables import experiments_with

REPORT = "report.html"
"""In the sweep's folder."""
NUMBERS = ("rows", "trains", "memory")
"""Titles of the columns of a plan that are read from the data and the model."""
GAP = 2
"""Blanks behind each column."""
WORDS = ("job", "steps, rate")
"""Titles of those whose cells may have several lines."""
LISTED = 40
"""Jobs of a plan that are listed one by one; `python -m alignlab status` lists all."""


def show_plan(name: str, planned: Sequence[PlannedJob], console: Console, *, whole: bool) -> None:
    """Prints the number of jobs in each state and the optimiser steps. `whole`: and one line for each job, and their time."""
    counts = Counter(_action(each) for each in planned)
    summary = ", ".join(f"{count} {action}" for action, count in counts.items())
    console.print(f"sweep {escape(name)}: {len(planned)} jobs ({summary}); {_steps(planned)}", soft_wrap=True)
    if not whole:
        return
    looked = any(each.looked or each.need for each in planned[:LISTED])
    table = Table(box=None, padding=(0, GAP, 0, 0), show_edge=False)
    for title in (WORDS[0], "", WORDS[1], *(NUMBERS if looked else ()), "run"):
        table.add_column(title)
    for each in planned[:LISTED]:
        seen = _seen(each) if looked else ()
        table.add_row(*map(Text, (_short(each), _action(each), _of_stages(each), *seen, each.job.folder)))
    _print_unbroken(table, console)
    for each in planned[:LISTED]:
        if each.job.refused:
            console.print(f"refused: {_named(each)}: {each.job.refused}", markup=False, highlight=False, soft_wrap=True)
    if len(planned) > LISTED:
        console.print(f"... and {len(planned) - LISTED} more")
    for told in _not_seen(planned):
        console.print(told, soft_wrap=True)
    too_much: dict[str, list[str]] = {}
    for each in planned:
        if each.misfit:
            too_much.setdefault(each.misfit, []).append(_named(each))
    for why, jobs in too_much.items():
        more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        console.print(f"{jobs[0]}{more}: {why}", markup=False, highlight=False, soft_wrap=True)
    revisions = (f"revision: {told}" for each in planned for told in each.revisions)
    for told in dict.fromkeys([*revisions, *(each.measured for each in planned if each.pending), _time(planned)]):
        if told:
            console.print(told, soft_wrap=True, markup=False, highlight=False)


def _of_stages(planned: PlannedJob) -> str:
    """Steps and learning rate of each stage that trains."""
    if planned.job.refused:
        return ""
    if planned.stages is None:
        return "?"
    about = "about " if planned.estimated else ""
    return ", ".join(f"{stage.name} {about}{stage.steps:,} at {stage.rate:g}" for stage in planned.stages) or "0"


def _named(planned: PlannedJob) -> str:
    return " ".join(planned.job.overrides or planned.overrides)


def _short(planned: PlannedJob) -> str:
    """A job for a table: of the key of a group, such as +experiment/clm/rows, the last word."""
    pairs = (word.partition("=") for word in planned.job.overrides or planned.overrides)
    return " ".join(f"{key.lstrip('+').rpartition('/')[2]}{equals}{value}" for key, equals, value in pairs)


def _print_unbroken(table: Table, console: Console) -> None:
    """Prints a table in which lines end between words, and nowhere in NUMBERS: it is wider than the console where it has to
    be."""
    for column in table.columns:
        cells = [str(column.header), *map(str, column.cells)]
        parts = cells if column.header in NUMBERS else [word for cell in cells for word in cell.split()]
        column.min_width = max(map(cell_len, parts), default=1)
        column.no_wrap = column.header not in WORDS
    width = console.width
    console.width = max(width, sum((column.min_width or 0) + GAP for column in table.columns))
    console.print(table, crop=False)
    console.width = width


def _seen(planned: PlannedJob) -> tuple[str, str, str]:
    """Rows, trained parameters and memory of a job, as far as they are known."""
    from alignlab.memory import amount

    rows, need = planned.looked.rows if planned.looked else "", planned.need
    if need is None:
        return (rows, "0", amount(0)) if planned.looked else ("", "", "")
    return rows, f"{need.trained:,}", f"{amount(need.total)}{'' if need.groups else ' + activations'}"


def _not_seen(planned: Sequence[PlannedJob]) -> list[str]:
    """What a plan does not tell of jobs whose model or data is on the hub."""
    unseen = [each for each in planned if each.pending and each.looked is None]
    shaped = sum(each.need is not None for each in unseen)
    why = "their model or data is on the hub, and a plan downloads nothing"
    told = []
    if shaped:
        told.append(f"of {shaped} jobs memory is estimated from their model's config, and rows are told when they run: {why}")
    if len(unseen) > shaped:
        told.append(f"of {len(unseen) - shaped} jobs rows and memory are told when they run: {why}")
    return told


def _time(planned: Sequence[PlannedJob]) -> str:
    """How long the pending jobs take one after the other, each shared stage once; "" where none is looked at."""
    pending = [each for each in planned if each.pending and each.looked]
    if not pending:
        return ""
    from alignlab.plan_text import EVALUATION, lasting

    known, unknown = 0.0, 0
    made: set[str] = set()
    for each in pending:
        assert each.looked is not None
        asked = [(stage.name, stage.steps) for stage in each.stages or () if not stage.content or stage.content not in made]
        made |= {stage.content for stage in each.stages or ()}
        asked += [(EVALUATION, 1)] if each.looked.evaluated else []
        known += sum(times * each.looked.seconds[name] for name, times in asked if name in each.looked.seconds)
        unknown += any(name not in each.looked.seconds for name, _ in asked)
    lacking = f"; of {unknown} jobs not all is known, since no like run was made here" if unknown else ""
    return (
        f"time: {'at least' if unknown else 'about'} {lasting(known)}, one job after the other, as like runs took{lacking}"
        if known
        else ("time: not known, since no like run was made here; a run tells it in its first seconds")
    )


def show_outcome(
    name: str, planned: Sequence[PlannedJob], failures: Mapping[int, str], submitted: int, console: Console
) -> None:
    """Prints how many jobs finished, failed and were skipped, and of each failure its error and the command that repeats it.

    `failures`: from the index of a job in the sweep to its error. `submitted`: jobs that this process does not wait for.
    """
    skipped = sum(each.state.name == "done" and index not in failures for index, each in enumerate(planned))
    finished = len(planned) - skipped - len(failures) - submitted
    outcome = f"{submitted} jobs submitted" if submitted else f"{finished} finished"
    summary = f"{outcome}, {len(failures)} failed, {skipped} skipped (done before)"
    console.print(f"\nsweep {escape(name)}: {summary}", soft_wrap=True)
    if submitted:
        console.print(f"`python -m alignlab status {escape(name)}` shows their states", soft_wrap=True)
    for index, error in failures.items():
        command = run_command(planned[index].overrides)
        console.print(f"failed: {escape(' '.join(planned[index].job.overrides))}", soft_wrap=True)
        console.print(f"  {escape(error)}", soft_wrap=True)
        console.print(f"  again: {escape(command)}", soft_wrap=True)


def show_table(runs: Path, name: str, console: Console) -> None:
    """Prints the table of a sweep, as `python -m alignlab table` does, and writes its report beside its ledger; nothing where
    no job has a number."""
    from alignlab.plots.report import page_of
    from alignlab.tables.render import markdown, published_for, sections_of
    from alignlab.tables.sweep import Selection, read_sweep, table_of

    sweep = read_sweep(runs, name)
    if not any(job.results for job in sweep.jobs):
        return
    try:
        table = table_of(sweep, Selection())
    except ConfigError:  # nothing was measured at strength 1
        table = table_of(sweep, Selection(strengths=None))
    experiments = experiments_with(name)
    published = published_for(name, experiments, trial=table.sweep.trial)
    text = markdown(name, sections_of(table, published, experiments))
    console.print(f"\n{text}", markup=False, highlight=False, soft_wrap=True, end="")
    report = sweep.ledger.folder / REPORT
    with replaced_alone(report) as unfinished:
        unfinished.write_text(page_of(table, published, experiments), encoding="utf-8")
    console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)


def _action(planned: PlannedJob) -> str:
    """What the sweep will do with a job, and why."""
    if planned.job.refused:
        return "refused"
    state = planned.state.name
    if planned.state.outdated:
        return "done by another version" if state == "done" else "to run (done by another version)"
    elsewhere = {"done": "done", "missing": "to run", "running": "running elsewhere", "queued": "queued"}
    return elsewhere.get(state) or f"to run ({state} before)"


def _steps(planned: Sequence[PlannedJob]) -> str:
    """The optimiser steps of the pending jobs. A shared stage may be in the store already, so they are an upper bound."""
    pending = [each for each in planned if each.pending]
    unknown = sum(each.stages is None for each in pending)
    steps, shared = steps_computed_once(each.stages or () for each in pending)
    estimated = any(each.estimated and each.stages for each in pending)
    most = "about " if estimated else "at most " if shared else ""
    text = f"{most}{steps:,} optimiser steps to make"
    if unknown:
        beside = f"{text}, and those of {unknown} job{'s'[: unknown - 1]}" if unknown < len(pending) else "optimiser steps"
        text = f"{beside} are counted when they run, since their data is not here"
    text += ", if no row is left out" if estimated else ""
    once = [f"{name} {_times(times)} for {jobs} jobs" for name, (times, jobs) in shared.items() if times < jobs]
    return text + (f"; shared stages: {', '.join(once)}" if once else "")


def _times(times: int) -> str:
    return "once" if times == 1 else f"{times} times"
