"""The seam to experiment trackers: one job is one run, and no outage of a tracker reaches the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Identity:
    """Who a run is to a tracker. `id` is the same whenever the same config and seed run again."""

    id: str
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    folder: Path
    config: Mapping[str, Any]


class Tracker(Protocol):
    """An open tracker run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics."""

    def results(self, rows: Sequence[Mapping[str, Any]], figures: Sequence[Path]) -> None:
        """The final table and pictures."""

    def pause(self) -> None:
        """Lets go of the run, which another process will go on with."""

    def close(self, *, failed: bool) -> None:
        """Ends the run, as finished or as failed."""


class NoTracker:
    """tracking=off: the ledger alone."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def results(self, rows: Sequence[Mapping[str, Any]], figures: Sequence[Path]) -> None:
        """Nothing."""

    def pause(self) -> None:
        """Nothing."""

    def close(self, *, failed: bool) -> None:
        """Nothing."""
