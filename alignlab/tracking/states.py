"""Where a run is: what its ledger says, and whether the process that wrote it still lives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.files import held
from alignlab.tracking.ledger import Ledger

LOCK = ".alive"
"""Held by the process that a run runs in."""
QUEUED = "queued.json"
"""Written where a run is handed to a cluster: the cluster's job, and when."""
STATES = ("missing", "queued", "running", "done", "failed", "preempted", "interrupted", "killed")


@dataclass(frozen=True)
class State:
    """`name`: one of STATES; missing = never started, killed = its ledger says running, and no process has it. `told`: what
    the ledger says besides: time, error, stage, step, steps, seconds_left."""

    name: str
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def progress(self) -> str:
        """Step and time left of a running job, as words."""
        if self.name != "running" or "step" not in self.told:
            return ""
        left = self.told.get("seconds_left")
        rest = "" if left is None else f", {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"
        return f"{self.told['stage']} {self.told['step']}/{self.told['steps']}{rest}"


def state_of(folder: Path) -> State:
    """The state of a run folder."""
    ledger = Ledger(folder)
    told, queued = ledger.read("status.json"), ledger.read(QUEUED)
    if queued and (told is None or queued["time"] > told["time"]):
        return State("queued", queued)  # perhaps once more, after an end that was no success
    if told is None:
        return State("missing")
    name = str(told.pop("state"))
    if name == "done" and not (folder / "report.json").is_file():
        return State("missing")
    if name == "running":
        # A run on another machine cannot be asked; its ledger is believed.
        here = told.get("host") in (None, _host())
        if here and held(folder / LOCK) is False:
            return State("killed", told)
        told.update(ledger.read("progress.json") or {})
    return State(name, told)


def _host() -> str:
    import socket

    return socket.gethostname()
