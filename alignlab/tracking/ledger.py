"""The files of a run folder (config, environment, status, metrics), written whatever else fails, and the state they show."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from alignlab.errors import RunFolderError
from alignlab.files import NO_ROOM, code_version, held, last_beat, wait_for_silence, write_whole

log = logging.getLogger(__name__)
LOCK = ".alive"
"""File of a run folder; the process of the run holds its lock, and counts in it."""
QUEUED = "queued.json"
"""File of a run that was submitted to a cluster: the cluster's job id, the time, the log, and the status it had before."""
STATES = ("missing", "queued", "running", "done", "failed", "preempted", "interrupted", "killed", "damaged")
STATUS, REPORT, ENVIRONMENT = "status.json", "report.json", "env.json"
DROPPED = "dropped.csv"
"""File of a run that drops rows: each of them, and why."""
CARD = "README.md"
"""Beside an adapter."""
OF_A_ROW = frozenset({"strength", "control", "suite", "metric", "value", "n", "low", "high"})
"""What a row of a report has at least."""


class Ledger:
    """The files of one run folder. JSON files are replaced whole, metrics are appended line by line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, content: Mapping[str, Any], indent: int | None = 2, *, durable: bool = True) -> Path:
        """Replaces a JSON file in one move, so that a reader never sees half of it. `durable`: also if the machine fails."""
        path = self.folder / name
        write_whole(path, _text(content, indent), durable=durable)
        return path

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file, None if it does not exist. Raises RunFolderError for one that is damaged."""
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} cannot be read ({error}); repeat its run, or remove the file.") from error
        if not isinstance(content, dict):
            raise RunFolderError(f"{path} cannot be read (it holds no object of JSON); repeat its run, or remove the file.")
        return content

    def found(self, name: str) -> dict[str, Any]:
        """A JSON file; empty if it does not exist, and after a warning if it is damaged."""
        try:
            return self.read(name) or {}
        except RunFolderError as error:
            log.warning("%s", error)
            return {}

    def status(self, state: str, **more: Any) -> None:
        """Writes status.json. `state`: running | done | failed | interrupted | preempted. On a full disk it is written into the
        room of the one before."""
        content = {"state": state, "time": now(), "mark": secrets.token_hex(4), **more}
        try:
            self.write(STATUS, content)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            with suppress(OSError), (self.folder / STATUS).open("r+b") as file:
                file.write(_text(content).encode())
                file.truncate()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line; names are stage/quantity, `step` counts optimiser steps within the stage."""
        self.append("metrics.jsonl", {"step": step, **values})

    def append(self, name: str, content: Mapping[str, Any]) -> None:
        """Appends a line of JSON to a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("ab+") as file:
            file.write(f"{_after_cut(file)}{json.dumps(content)}\n".encode())

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The objects in the lines of a file. A line that a kill cut short, or that holds no object, is left out."""
        path = self.folder / name
        if not path.is_file():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry

    def history(self) -> Iterator[dict[str, Any]]:
        """Every line of metrics. One that is no line of metrics is left out; of several lines with the same step and first
        name, the last counts."""
        lines: dict[tuple[int, str], dict[str, Any]] = {}
        for entry in self.lines("metrics.jsonl"):
            if isinstance(entry.get("step"), int):
                lines[entry["step"], next((key for key in entry if key != "step"), "")] = entry
        yield from lines.values()

    def take(self, wanted: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
        """Takes lines out of the metrics, and returns them."""
        lines = list(self.history())
        taken = [line for line in lines if wanted(line)]
        if taken:
            left = (json.dumps(line) + "\n" for line in lines if not wanted(line))
            write_whole(self.folder / "metrics.jsonl", "".join(left))
        return taken


def _text(content: Mapping[str, Any], indent: int | None = 2) -> str:
    return json.dumps(content, indent=indent, sort_keys=False) + "\n"


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
    """`name`: one of STATES; missing = never started, killed = status.json says running and no process is at it, damaged = a
    file that says how it ended cannot be read. `details`: the other entries of the ledger: time, error, stage, step, steps,
    seconds_left, job, log. `outdated`: it is done, by another version of the code or of a library than runs here."""

    name: str
    details: dict[str, Any] = field(default_factory=dict)
    outdated: bool = False

    @property
    def label(self) -> str:
        """Its name, and whether another version has done it."""
        return f"{self.name} by another version" if self.outdated else self.name

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
    try:
        return _state(folder)
    except RunFolderError as error:
        return State("damaged", {"error": str(error)})


def _state(folder: Path) -> State:
    ledger = Ledger(folder)
    status, queued = ledger.read(STATUS), ledger.found(QUEUED)
    if queued and queued.get("status") == mark_of(status):
        return State("queued", queued)  # perhaps submitted again after a failure: nothing has begun since
    if status is None:
        return State("missing")
    status.pop("mark", None)
    name = str(status.pop("state", ""))
    if name not in STATES:
        raise RunFolderError(f"{folder / STATUS} is damaged (its state is {name!r}); repeat its run, or remove the file.")
    if name == "done":
        report = ledger.read(REPORT)
        if report is None:
            return State("missing")
        rows = report.get("results", [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= OF_A_ROW for row in rows):
            raise RunFolderError(
                f"{folder / REPORT} cannot be read (its results are no rows); repeat its run, or remove the file."
            )
        return State(name, status, outdated=ledger.found(ENVIRONMENT).get("code") != code_version())
    if name == "running":
        if not is_alive(folder, status.get("host")):
            return State("killed", status)
        status.update(ledger.found("progress.json"))
    return State(name, status)


def mark_of(status: Mapping[str, Any] | None) -> str | None:
    """What tells one writing of a status from the next; None where there is none."""
    return None if status is None else str(status.get("mark", status.get("time")))


def is_alive(folder: Path, host: str | None) -> bool:
    """Whether a process is at a run that says so. Its lock tells it on this machine. On another one the lock may be out of
    sight: there the run is alive as long as it counts, as this machine sees it."""
    lock = folder / LOCK
    holder = held(lock)
    if holder or (holder is None and host in (None, socket.gethostname())):
        return True  # a file system without locks cannot tell
    return host not in (None, socket.gethostname()) and last_beat(lock)


def wait_for_other_machine(folder: Path) -> None:
    """Returns when no other machine is at a run, by its status and by what it counts; called by the process that has its lock,
    which another machine may not see."""
    status = Ledger(folder).found(STATUS)
    host = status.get("host")
    if status.get("state") == "running" and host not in (None, socket.gethostname()):
        log.info("%s was at this run last, and did not end it; it is taken over when it stays silent for half a minute", host)
        wait_for_silence(folder / LOCK)


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
