"""The files of a run folder (config, environment, status, metrics), written whatever else fails, and the state they show."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from alignlab.files import held

LOCK = ".alive"
"""File of a run folder; the process of the run holds its lock."""
QUEUED = "queued.json"
"""File of a run that was submitted to a cluster: the cluster's job id, the time and the log."""
STATES = ("missing", "queued", "running", "done", "failed", "preempted", "interrupted", "killed")


class Ledger:
    """The files of one run folder. JSON files are replaced whole, metrics are appended line by line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, content: Mapping[str, Any], indent: int | None = 2) -> Path:
        """Replaces a JSON file in one move, so that a reader never sees half of it."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f"{path.suffix}.{os.getpid()}.part")
        unfinished.write_text(json.dumps(content, indent=indent, sort_keys=False) + "\n", encoding="utf-8")
        unfinished.replace(path)
        return path

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file, None if it does not exist."""
        path = self.folder / name
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def status(self, state: str, **more: Any) -> None:
        """Writes status.json. `state`: running | done | failed | interrupted | preempted."""
        self.write("status.json", {"state": state, "time": now(), **more})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line; names are stage/quantity, `step` counts optimiser steps within the stage."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "metrics.jsonl").open("ab+") as file:
            line = json.dumps({"step": step, **values}) + "\n"
            file.write((_after_cut(file) + line).encode())

    def history(self) -> Iterator[dict[str, Any]]:
        """Every line of metrics. A line that a kill cut short is left out; of several lines with the same step and first name,
        the last counts."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        lines: dict[tuple[int, str], dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            lines[entry["step"], next((key for key in entry if key != "step"), "")] = entry
        yield from lines.values()


def _after_cut(file: BinaryIO) -> str:
    """A line break if a kill cut the last line short, so that the next line stays readable; else ""."""
    if not file.seek(0, os.SEEK_END):
        return ""
    file.seek(-1, os.SEEK_END)
    return "" if file.read() == b"\n" else "\n"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class State:
    """`name`: one of STATES; missing = never started, killed = status.json says running and no process holds the lock.
    `details`: the other entries of the ledger: time, error, stage, step, steps, seconds_left, job, log."""

    name: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def progress(self) -> str:
        """Stage, step and time left of a running job, as text; "" for any other state."""
        if self.name != "running" or "step" not in self.details:
            return ""
        left = self.details.get("seconds_left")
        rest = "" if left is None else f", {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"
        return f"{self.details['stage']} {self.details['step']}/{self.details['steps']}{rest}"


def state_of(folder: Path) -> State:
    """The state of a run folder."""
    ledger = Ledger(folder)
    status, queued = ledger.read("status.json"), ledger.read(QUEUED)
    if queued and (status is None or queued["time"] > status["time"]):
        return State("queued", queued)  # perhaps submitted again after a failure
    if status is None:
        return State("missing")
    name = str(status.pop("state"))
    if name == "done" and not (folder / "report.json").is_file():
        return State("missing")
    if name == "running":
        # The lock of a run on another machine cannot be tested; its status is taken as it is.
        if status.get("host") in (None, socket.gethostname()) and held(folder / LOCK) is False:
            return State("killed", status)
        status.update(ledger.read("progress.json") or {})
    return State(name, status)


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
