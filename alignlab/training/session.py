"""The folder a run lives in, and what every stage and suite needs to know about the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alignlab.tracking import Tracker
from alignlab.tracking.ledger import Ledger
from alignlab.training.config import TrainerConfig
from alignlab.training.preemption import Preemption
from alignlab.training.validation import Validation


@dataclass(frozen=True)
class Session:
    """One run: where it writes, what it reports to, how it trains, its seed, the store shared by all runs, and
    whether it was asked to leave; and what is measured while it trains, if anything."""

    folder: Path
    store: Path
    ledger: Ledger
    tracker: Tracker
    trainer: TrainerConfig
    device: str
    seed: int
    preemption: Preemption = field(default_factory=Preemption)
    validation: Validation | None = None

    def stage_folder(self, stage: str) -> Path:
        """Where a stage keeps its checkpoints and its result."""
        return self.folder / "stages" / stage

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a stage to the ledger and the tracker, named stage/quantity."""
        named = {f"{stage}/{quantity}": value for quantity, value in values.items()}
        self.ledger.metrics(step, named)
        self.tracker.log(step, named)
