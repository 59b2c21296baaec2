"""The jobs of a sweep as they stand, read from what they left on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import RunFolderError
from alignlab.tables.folders import MISSING
from alignlab.tracking.ledger import Ledger, State
from alignlab.tracking.sweeps import Job, SweepLedger, find_sweep

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Seen:
    """A job and how it stands. `extra`: its seed is not one of the table's own. `report`: empty unless it is done."""

    job: Job
    state: State
    extra: bool
    folder: Path
    report: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def results(self) -> Sequence[Mapping[str, Any]]:
        """The rows of its report; a run without evaluation has none."""
        return self.report.get("results", ())

    @property
    def model(self) -> str:
        """The short name of its model: as swept, or from its config; "" where neither is known."""
        return self.job.settings.get("model") or str(self.config.get("model", {}).get("name", ""))


@dataclass(frozen=True)
class Sweep:
    """A sweep and its jobs, in the order in which they were declared."""

    ledger: SweepLedger
    jobs: tuple[Seen, ...]

    @property
    def name(self) -> str:
        """Its name, such as clm/toy/table1."""
        return self.ledger.name

    @property
    def settings(self) -> list[str]:
        """The swept keys in which its jobs differ, rows and seeds aside."""
        names = dict.fromkeys(name for seen in self.jobs for name in seen.job.settings)
        return [name for name in names if len({seen.job.settings.get(name) for seen in self.jobs}) > 1]

    @property
    def names(self) -> list[str]:
        """`row`, where the jobs differ in it, and the settings."""
        return [*(["row"] if len({seen.job.row for seen in self.jobs}) > 1 else []), *self.settings]

    def value(self, seen: Seen, name: str) -> str:
        """A job's value of a swept key, or its `row`; none where it does not have that key."""
        return seen.job.row if name == "row" else seen.job.settings.get(name, MISSING)

    def label(self, seen: Seen) -> str:
        """A job without its seed: its row, and the settings in which the jobs differ."""
        told = ", ".join(f"{name}={seen.job.settings[name]}" for name in self.settings if name in seen.job.settings)
        return " ".join(part for part in (seen.job.row, told) if part) or self.name


def read_sweep(runs: Path, name: str) -> Sweep:
    """The sweep of this name; raises RunFolderError where there is none, or where it has no job."""
    ledger = find_sweep(runs, name)
    # One job per cell: where two were declared for one cell, the later one stands.
    latest = {(job.row, tuple(sorted(job.settings.items())), job.seed): job for job in ledger.jobs()}
    if not latest:
        raise RunFolderError(f"sweep {name} has no jobs; start it again with python run.py.")
    return Sweep(ledger, tuple(_seen(ledger, job) for job in latest.values()))


def frame_of(sweep: Sweep) -> pd.DataFrame:
    """Every number of every finished job, in the form of `folders.results`; `row` is a setting where a sweep has rows.

    Raises RunFolderError where no job has a number yet.
    """
    import pandas as pd

    lines = [
        {
            **{name: sweep.value(seen, name) for name in sweep.names},
            "seed": seen.job.seed,
            **result,
        }
        for seen in sweep.jobs
        for result in seen.results
    ]
    if not lines:
        raise RunFolderError(f"no job of {sweep.name} has a number yet; {told(sweep.jobs)}.")
    return pd.DataFrame(lines)


def told(jobs: Sequence[Seen]) -> str:
    """How many jobs are in each state, in words."""
    counts: dict[str, int] = {}
    for seen in jobs:
        counts[seen.state.name] = counts.get(seen.state.name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _seen(sweep: SweepLedger, job: Job) -> Seen:
    folder = sweep.run_folder(job)
    ledger = Ledger(folder)
    state = sweep.state(job)
    report = ledger.read("report.json") if state.name == "done" else None
    return Seen(
        job=job,
        state=state,
        extra=sweep.is_extra(job),
        folder=folder,
        report=report or {},
        config=ledger.read("config.json") or {},
        environment=ledger.read("env.json") or {},
    )
