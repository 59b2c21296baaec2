"""Where a run is, and whether it has been done: what can be known of it without torch."""

from __future__ import annotations

import json
from pathlib import Path

from alignlab.config import RunConfig
from alignlab.errors import RunFolderError
from alignlab.tracking.ledger import LOCK, QUEUED, Ledger, state_of

STORE = ".store"
"""Folder beside the runs: what all of them share."""
NO_RUN_YET = (LOCK, QUEUED, "status.json")
"""Files that can be in a run's folder before it has begun; its status, where its data was refused in a sweep."""


def folder_of(config: RunConfig) -> Path:
    """The run's folder: as given, or by title, fingerprint and seed."""
    if config.folder:
        return Path(config.folder)
    return Path(config.paths.runs) / f"{config.title}-{config.fingerprint}" / f"seed-{config.seed}"


def finished(config: RunConfig) -> Path | None:
    """The report of this very run, if it has been done before and is not to be done again.

    Raises RunFolderError for a folder that another config made.
    """
    folder = folder_of(config)
    refuse_other(Ledger(folder), config)
    return folder / "report.json" if state_of(folder).name == "done" and not config.force else None


def headline_of(report: Path) -> float | None:
    """The headline number of a report on disk; None for a run without evaluation."""
    shown = json.loads(report.read_text(encoding="utf-8"))["headline"]
    return float(shown["value"]) if shown else None


def refuse_other(ledger: Ledger, config: RunConfig) -> None:
    """Raises RunFolderError for a folder that another config made, or that holds no run, or is a file."""
    if ledger.folder.exists() and not ledger.folder.is_dir():
        raise RunFolderError(f"{ledger.folder} is a file; give the path of a folder.")
    made_by = ledger.read("config.json")
    if made_by is None:
        if ledger.folder.is_dir() and any(_is_foreign(file) for file in ledger.folder.iterdir()):
            raise RunFolderError(f"{ledger.folder} is not empty and holds no run; give another folder.")
        return
    if (made_by["fingerprint"], made_by["seed"]) != (config.fingerprint, config.seed):
        raise RunFolderError(
            f"{ledger.folder} was made by another config (fingerprint {made_by['fingerprint']}, seed {made_by['seed']}; this"
            f" one is {config.fingerprint}, seed {config.seed}); give another folder or remove it."
        )


def _is_foreign(file: Path) -> bool:
    return file.suffix != ".part" and file.name not in NO_RUN_YET
