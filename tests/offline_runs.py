"""What wandb has written offline, read back by wandb's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Offline:
    """One part of a run: its folder and its records, in order."""

    folder: Path
    records: list[dict[str, Any]]

    def of(self, kind: str) -> list[Any]:
        """The records of one kind."""
        return [record[kind] for record in self.records if record["type"] == kind]

    @property
    def identity(self) -> dict[str, Any]:
        """Its id, name, group, job type, tags and config."""
        (run,) = self.of("run")
        return dict(run)

    @property
    def exit_codes(self) -> list[int]:
        """One, or none for a run that was killed."""
        return [record["exit_code"] for record in self.of("exit")]

    @property
    def last_values(self) -> dict[str, Any]:
        """The summary: the last value of every name."""
        return {name: value for update in self.of("summary") for name, value in update["update"].items()}


def offline_runs(folder: Path) -> list[Offline]:
    """The offline runs below a folder, oldest first."""
    logs = sorted(folder.glob("**/wandb/offline-run-*/run-*.wandb"))
    return [Offline(log.parent, _records(log)) for log in logs]


def _records(log: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return [json.loads(line) for line in lines]
