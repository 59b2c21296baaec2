"""What a sweep says: before it starts, which jobs there are; at its end, how each came out."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignlab.sweeps.jobs import Planned
from alignlab.sweeps.stages import computed_once

LISTED = 40
"""Jobs of a plan that are listed one by one; `python -m alignlab status` lists all."""


def show_plan(name: str, planned: Sequence[Planned], console: Console, *, whole: bool) -> None:
    """The jobs, what is done, what would run, and the optimiser steps. `whole`: a line for each job."""
    counts = Counter(_doing(each) for each in planned)
    told = ", ".join(f"{count} {doing}" for doing, count in counts.items())
    console.print(f"sweep {escape(name)}: {len(planned)} jobs ({told}); {_steps(planned)}", soft_wrap=True)
    if not whole:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("job", "", "steps", "run"):
        table.add_column(title, overflow="fold")
    for each in planned[:LISTED]:
        steps = "" if each.job.refused else "?" if each.job.steps is None else f"{each.job.steps:,}"
        words = " ".join(each.job.words or each.words)
        table.add_row(escape(words), escape(each.job.refused) or _doing(each), steps, escape(str(each.folder)))
    console.print(table)
    if len(planned) > LISTED:
        console.print(f"... and {len(planned) - LISTED} more")


def show_outcome(name: str, planned: Sequence[Planned], failures: Mapping[int, str], submitted: int, console: Console) -> None:
    """How many jobs finished, failed and were skipped; of each failure its own error and the command that repeats it.

    `failures`: from the place of a job in the sweep to its error. `submitted`: jobs that nobody waits for.
    """
    skipped = sum(each.state.name == "done" for each in planned)
    finished = len(planned) - skipped - len(failures) - submitted
    doing = f"{submitted} jobs submitted" if submitted else f"{finished} finished"
    told = f"{doing}, {len(failures)} failed, {skipped} skipped (done before)"
    console.print(f"\nsweep {escape(name)}: {told}", soft_wrap=True)
    if submitted:
        console.print(f"python -m alignlab status {escape(name)} tells how they stand", soft_wrap=True)
    for place, error in failures.items():
        console.print(f"failed: {escape(' '.join(planned[place].job.words))}", soft_wrap=True)
        console.print(f"  {escape(error)}", soft_wrap=True)
        console.print(f"  again: {escape(command(planned[place].words))}", soft_wrap=True)


def command(words: Sequence[str]) -> str:
    """The command line of one job."""
    return " ".join(["python run.py", *map(shlex.quote, words)])


def _doing(planned: Planned) -> str:
    if planned.job.refused:
        return "refused"
    state = planned.state.name
    elsewhere = {"done": "done", "missing": "to run", "running": "running elsewhere", "queued": "queued"}
    return elsewhere.get(state) or f"to run ({state} before)"


def _steps(planned: Sequence[Planned]) -> str:
    """A stage that is shared may be in the store already, so its steps are an upper bound."""
    waiting = [each for each in planned if each.pending]
    unknown = sum(each.job.steps is None for each in waiting)
    steps, shared = computed_once(each.stages for each in waiting)
    told = f"{'at most ' if shared else ''}{steps:,} optimiser steps to make"
    if unknown:
        told += f", and {unknown} jobs whose data is not counted yet"
    once = [f"{name} {_times(times)} for {jobs} jobs" for name, (times, jobs) in shared.items() if times < jobs]
    return told + (f"; shared stages: {', '.join(once)}" if once else "")


def _times(times: int) -> str:
    return "once" if times == 1 else f"{times} times"
