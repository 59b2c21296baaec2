"""What a run leaves on disk, whatever else fails: config, environment, status and metrics. Always written, read by tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO


class Ledger:
    """The files of one run folder. JSON files are replaced whole, metrics are appended line by line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, content: Mapping[str, Any]) -> Path:
        """Replaces a JSON file in one move, so that a reader never sees half of it."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f"{path.suffix}.{os.getpid()}.part")
        unfinished.write_text(json.dumps(content, indent=2, sort_keys=False) + "\n", encoding="utf-8")
        unfinished.replace(path)
        return path

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file, or None where it was never written."""
        path = self.folder / name
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def status(self, state: str, **more: Any) -> None:
        """running | done | failed | interrupted | preempted, and what belongs to it."""
        self.write("status.json", {"state": state, "time": now(), **more})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line; names are stage/quantity, `step` counts optimiser steps within the stage."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "metrics.jsonl").open("ab+") as file:
            line = json.dumps({"step": step, **values}) + "\n"
            file.write((_after_cut(file) + line).encode())

    def history(self) -> Iterator[dict[str, Any]]:
        """Every line of metrics; a line that a kill cut short is passed over, and a repeated step's last line stands."""
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
    """A line break where a kill has cut the last line short, so that the next one is not lost with it."""
    if not file.seek(0, os.SEEK_END):
        return ""
    file.seek(-1, os.SEEK_END)
    return "" if file.read() == b"\n" else "\n"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
