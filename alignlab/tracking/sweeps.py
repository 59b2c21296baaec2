"""The ledger of a sweep, written before anything runs: its jobs, each with its overrides, its swept keys and its run folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignlab.errors import RunFolderError
from alignlab.files import PART, alone
from alignlab.registry import unknown
from alignlab.tracking.ledger import Ledger, State, state_of

log = logging.getLogger(__name__)
FOLDER = "sweeps"
"""Below the runs: a folder per sweep."""
FILE = "sweep.json"


@dataclass(frozen=True)
class Job:
    """One cell of a table, or one job of a sweep.

    `overrides`: its own, besides those of the whole sweep. `row`: its row, "" where a sweep has none. `settings`: the other
    swept keys with their values, without the seed. `folder`: the run folder, relative to the folder of runs. `steps`: optimiser
    steps, None where they depend on data that has not been read. `refused`: why its config cannot run; then it has no run
    folder.
    """

    overrides: tuple[str, ...]
    row: str
    settings: Mapping[str, str]
    seed: int
    fingerprint: str
    folder: str
    steps: int | None
    refused: str = ""

    @property
    def cell(self) -> tuple[frozenset[str], int]:
        """The identity of the job: its overrides in any order, and its seed, whether or not an override gives it."""
        return frozenset(override for override in self.overrides if not override.startswith("seed=")), self.seed


class SweepLedger:
    """The file of one sweep below a folder of runs."""

    def __init__(self, runs: Path, name: str) -> None:
        self.runs = runs
        self.name = name
        self._ledger = Ledger(runs / FOLDER / name)

    @property
    def folder(self) -> Path:
        """The folder of the sweep's own files."""
        return self._ledger.folder

    def declare(
        self, overrides: Iterable[str], jobs: Iterable[Job], seeds: Iterable[int] = (), command: str | None = None
    ) -> None:
        """Adds jobs; one with the same overrides and seed as an earlier one replaces it. Safe among sweeps that start at once.

        `overrides`: those that all jobs share. `seeds`: those that the table's own config names; any other is an extra seed.
        `command`: the command line, kept with those of earlier commands of this sweep.
        """
        with alone(self.folder / ".lock", "waits for another sweep that writes down its jobs"):
            for left in self.folder.glob(f"{FILE}.*{PART}"):  # of a dead process
                left.unlink(missing_ok=True)
            new = {job.cell: job for job in jobs}
            corrected = {frozenset(job.overrides) for job in new.values()}
            known = {job.cell: job for job in self._whole_jobs()} | new
            known = {
                cell: job
                for cell, job in known.items()
                if cell in new or not job.refused or set(job.overrides) not in corrected
            }
            earlier = self._ledger.found(FILE).get("commands") or ()
            commands = list(dict.fromkeys([*earlier, *([command] if command else [])]))
            shared: dict[str, Any] = {"name": self.name, "overrides": list(overrides), "seeds": list(seeds)}
            self._ledger.write(FILE, {**shared, "commands": commands, "jobs": [asdict(job) for job in known.values()]})

    def jobs(self) -> list[Job]:
        """Every job that was ever declared, in that order; none if the sweep does not exist.

        Raises RunFolderError for a file that cannot be read.
        """
        found = (self._ledger.read(FILE) or {}).get("jobs", [])
        try:
            return [Job(**_with_overrides(job)) for job in found]
        except (TypeError, AttributeError) as error:
            raise RunFolderError(f"{self.folder / FILE} cannot be read ({error}); its command writes it again.") from error

    def _whole_jobs(self) -> list[Job]:
        """Every job; of a file that cannot be read none, after it was set aside."""
        try:
            return self.jobs()
        except RunFolderError as error:
            aside = (self.folder / FILE).rename(self.folder / f"{FILE}.damaged")
            log.warning("%s; it is set aside as %s, and begins anew with the jobs of this command", error, aside)
            return []

    def overrides(self) -> tuple[str, ...]:
        """The overrides that all jobs share."""
        return _with_overrides(self._ledger.read(FILE) or {})["overrides"]

    def commands(self) -> tuple[str, ...]:
        """The command lines by which its jobs were begun; of a file of an earlier version, what they have in common."""
        found = self._ledger.read(FILE) or {}
        return tuple(found.get("commands") or [" ".join(["python run.py", *self.overrides()])])

    def is_extra(self, job: Job) -> bool:
        """Whether the table's config does not name the job's seed."""
        seeds = (self._ledger.read(FILE) or {}).get("seeds") or [job.seed]
        return job.seed not in seeds

    def state(self, job: Job) -> State:
        """The state of a job; a refused job has failed."""
        return State("failed", {"error": job.refused}) if job.refused else state_of(self.run_folder(job))

    def run_folder(self, job: Job) -> Path:
        """The run folder of a job, which need not exist yet."""
        return self.runs / job.folder


def _with_overrides(content: dict[str, Any]) -> dict[str, Any]:
    """The entries of a sweep or a job with its overrides as a tuple. Files of earlier versions call them `words`."""
    overrides = content.get("overrides") or content.get("words") or ()
    return {**{key: value for key, value in content.items() if key != "words"}, "overrides": tuple(overrides)}


def relative(folder: Path, runs: Path) -> str:
    """A run folder relative to the folder of runs, which can then be moved."""
    return os.path.relpath(folder, runs)


def every_sweep(root: Path) -> list[SweepLedger]:
    """The sweeps of a folder of runs, and of the folders of runs right below it."""
    found = [path for runs in (root, *sorted(root.glob("*/"))) for path in sorted((runs / FOLDER).glob(f"**/{FILE}"))]
    homes = [next(parent for parent in path.parents if parent.name == FOLDER) for path in found]
    return [SweepLedger(home.parent, str(path.parent.relative_to(home))) for home, path in zip(homes, found, strict=True)]


def find_sweep(root: Path, name: str) -> SweepLedger:
    """The sweep of this name; raises RunFolderError where there is none, or more than one."""
    every = every_sweep(root)
    found = [sweep for sweep in every if sweep.name == name]
    if not found:
        raise RunFolderError(unknown("sweep", name, [sweep.name for sweep in every]) + f" Start one below {root}.")
    if len(found) > 1:
        raise RunFolderError(f"{name} is below {' and '.join(str(sweep.runs) for sweep in found)}; give one of them: --runs.")
    return found[0]
