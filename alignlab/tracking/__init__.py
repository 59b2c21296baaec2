"""Experiment trackers, written besides the ledger: one job is one run, and an outage of a tracker never stops a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from alignlab.registry import Entry, Registry, number, one_of
from alignlab.tracking.ledger import NoTracker

__all__ = ["TRACKERS", "Identity", "NoTracker", "OffConfig", "Tracker", "WandbConfig"]


@dataclass
class OffConfig:
    """No tracker; the ledger is always written."""

    name: str


@dataclass
class WandbConfig:
    """`mode`: auto (online when logged in, else offline) | online | offline | disabled. `group`: null = the sweep's
    name, or the run's. `timeout_seconds`: how long the start and the end of a run may each wait for the server."""

    name: str
    project: str
    entity: str | None
    mode: Annotated[str, one_of("auto", "online", "offline", "disabled")]
    group: str | None
    timeout_seconds: Annotated[float, number(above=0)]


@dataclass(frozen=True)
class Identity:
    """How a tracker names and files a run. `id` is the same whenever the run is resumed, or runs again, in its folder."""

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
        """The final table and figures."""

    def pause(self) -> None:
        """Ends the run as preempted; another process will resume it."""

    def close(self, *, failed: bool) -> None:
        """Ends the run, as finished or as failed."""


def _wandb(config: WandbConfig, identity: Identity) -> Tracker:
    from alignlab.tracking.weights_and_biases import open_run

    return open_run(config, identity)


TRACKERS = Registry(
    "tracking", {"off": Entry(OffConfig, lambda _config, _identity: NoTracker()), "wandb": Entry(WandbConfig, _wandb)}
)
