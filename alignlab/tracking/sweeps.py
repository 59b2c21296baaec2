"""What a sweep leaves on disk before anything runs: its jobs, each with its words, its settings and its run folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignlab.errors import RunFolderError
from alignlab.files import alone
from alignlab.registry import unknown
from alignlab.tracking.ledger import Ledger, State, state_of

FOLDER = "sweeps"
"""Below the runs: a folder per sweep."""
FILE = "sweep.json"


@dataclass(frozen=True)
class Job:
    """One cell of a table, or one job of a sweep.

    `words`: what makes it this job, besides the sweep's own words. `row`: its row, "" where a sweep has none. `settings`: the
    other swept keys, the seed aside. `folder`: the run folder, relative to the folder of runs. `steps`: optimiser steps, None
    where they depend on data that has not been read. `refused`: why its config cannot run; then it has no run folder.
    """

    words: tuple[str, ...]
    row: str
    settings: Mapping[str, str]
    seed: int
    fingerprint: str
    folder: str
    steps: int | None
    refused: str = ""

    @property
    def cell(self) -> tuple[frozenset[str], int]:
        """What makes it this job: its words in any order, and its seed, whether a word gives it or not."""
        return frozenset(word for word in self.words if not word.startswith("seed=")), self.seed


class SweepLedger:
    """The file of one sweep below a folder of runs."""

    def __init__(self, runs: Path, name: str) -> None:
        self.runs = runs
        self.name = name
        self._ledger = Ledger(runs / FOLDER / name)

    @property
    def folder(self) -> Path:
        """Where the sweep's own files go."""
        return self._ledger.folder

    def declare(self, words: Iterable[str], jobs: Iterable[Job], seeds: Iterable[int] = ()) -> None:
        """Adds jobs; one with the same words and seed as an earlier one takes its place. Safe among sweeps that start at once.

        `words`: what all jobs have in common on the command line. `seeds`: those that the table's own config names; any other
        is an extra, and is called so.
        """
        with alone(self.folder / ".lock", "waits for another sweep that writes down its jobs"):
            new = {job.cell: job for job in jobs}
            mended = {frozenset(job.words) for job in new.values()}
            known = {job.cell: job for job in self.jobs()} | new
            known = {cell: job for cell, job in known.items() if cell in new or not job.refused or set(job.words) not in mended}
            content: dict[str, Any] = {"name": self.name, "words": list(words), "seeds": list(seeds)}
            self._ledger.write(FILE, {**content, "jobs": [asdict(job) for job in known.values()]})

    def jobs(self) -> list[Job]:
        """Every job that was ever declared, in that order; none where there is no such sweep."""
        content = self._ledger.read(FILE) or {"jobs": []}
        return [Job(**{**job, "words": tuple(job["words"])}) for job in content["jobs"]]

    def words(self) -> tuple[str, ...]:
        """What all jobs have in common on the command line."""
        return tuple((self._ledger.read(FILE) or {"words": []})["words"])

    def is_extra(self, job: Job) -> bool:
        """Whether the job's seed is none of those that the table's config names."""
        seeds = (self._ledger.read(FILE) or {}).get("seeds") or [job.seed]
        return job.seed not in seeds

    def state(self, job: Job) -> State:
        """How a job stands; one that was refused has failed."""
        return State("failed", {"error": job.refused}) if job.refused else state_of(self.run_folder(job))

    def run_folder(self, job: Job) -> Path:
        """Where a job's run is, or will be."""
        return self.runs / job.folder


def relative(folder: Path, runs: Path) -> str:
    """A run folder as a job names it, so that a folder of runs can be moved."""
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
