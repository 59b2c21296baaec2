"""`python -m alignlab status`: where every run is, those of a sweep together."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from alignlab.commands.words import Commands
from alignlab.errors import RunFolderError
from alignlab.tracking.states import State, state_of
from alignlab.tracking.sweeps import SweepLedger, every_sweep, find_sweep

QUIET = ("done", "missing")
"""States that a sweep counts and does not list."""


def add(commands: Commands) -> None:
    """Its words."""
    parser = commands.add_parser("status", help="where every run is, from the ledgers: queued, running, done, failed, ...")
    parser.add_argument(
        "name", nargs="?", help="a sweep, such as red/toy/table1, whose jobs are all listed; or a folder of runs"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of runs")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    """A line per sweep and per job that is not simply done; then the runs that belong to no sweep."""
    root = Path(given.name) if given.name and Path(given.name).is_dir() else given.runs
    if given.name and root == given.runs:
        _show_sweep(find_sweep(root, given.name), whole=True)
        return
    sweeps = every_sweep(root)
    for sweep in sweeps:
        _show_sweep(sweep, whole=False)
    in_sweeps = {folder.resolve() for sweep in sweeps for folder in _folders(sweep)}
    alone = [path.parent for path in sorted(root.glob("**/status.json")) if path.parent.resolve() not in in_sweeps]
    if not sweeps and not alone:
        raise RunFolderError(f"no run below {root}; give the folder that `paths.runs` names.")
    _show_runs([(str(folder), state_of(folder)) for folder in alone])


def _show_sweep(sweep: SweepLedger, *, whole: bool) -> None:
    jobs = [(" ".join(job.words), sweep.state(job)) for job in sweep.jobs()]
    counts = Counter(state.name for _, state in jobs)
    told = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    print(f"{sweep.name}: {len(jobs)} jobs ({told})")
    _show_runs([(words, state) for words, state in jobs if whole or state.name not in QUIET])


def _show_runs(runs: Sequence[tuple[str, State]]) -> None:
    for named, state in runs:
        more = state.progress or state.told.get("error", "") or (f"job {state.told['job']}" if "job" in state.told else "")
        print(f"{state.name:11} {state.told.get('time', ''):26} {named}  {more}".rstrip())


def _folders(sweep: SweepLedger) -> list[Path]:
    return [sweep.run_folder(job) for job in sweep.jobs()]
