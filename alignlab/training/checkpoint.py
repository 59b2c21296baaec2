"""Which checkpoint of a stage can be trusted: one that was marked after everything in it had been written."""

from __future__ import annotations

from pathlib import Path

MARK = "complete"


def mark(folder: Path) -> None:
    """Declares a checkpoint folder complete; called last."""
    (folder / MARK).touch()


def latest(stage_folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None. A kill while saving leaves a folder without the mark."""
    complete = [folder for folder in stage_folder.glob("checkpoint-*") if (folder / MARK).is_file()]
    return max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
