"""Sweeps on disk, as a real one leaves them, with numbers that are easy to follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.tracking.ledger import Ledger
from alignlab.tracking.sweeps import Job, SweepLedger

ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"alignlab": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
    "commit": "c0ffee",
    "changed_files": 0,
    "system": "Linux x86_64",
    "gpus": [],
}


def number(metric: str, value: float, strength: float = 1.0, control: str = "dial", n: int = 8) -> dict[str, Any]:
    """One row of a report; its own interval is 0.5 to either side."""
    suite, _, name = metric.partition("/")
    low, high = value - 0.5, value + 0.5
    return {
        "strength": strength,
        "control": control,
        "suite": suite,
        "metric": name,
        "value": value,
        "n": n,
        "low": low,
        "high": high,
    }


class MadeSweep:
    """A sweep that is written job by job."""

    def __init__(self, runs: Path, name: str, words: Sequence[str] = ()) -> None:
        self.runs, self.name, self.words = runs, name, tuple(words)

    def job(self, row: str, seed: int, settings: Mapping[str, str] | None = None) -> Ledger:
        """Declares a job that has not been started."""
        swept = dict(settings or {})
        folder = "-".join([row, *swept.values()]) + f"/seed-{seed}"
        words = (f"row={row}", *(f"{key}={value}" for key, value in swept.items()), f"seed={seed}")
        SweepLedger(self.runs, self.name).declare(self.words, [Job(words, row, swept, seed, f"f{seed}", folder, 3)])
        return Ledger(self.runs / folder)

    def done(
        self, row: str, seed: int, results: Sequence[Mapping[str, Any]], settings: Mapping[str, str] | None = None
    ) -> Ledger:
        """A finished job."""
        run = self.job(row, seed, settings)
        run.write("config.json", {"fingerprint": f"f{seed}", "seed": seed, "model": {"name": "tiny"}})
        run.write("env.json", ENVIRONMENT)
        account = {"read": 9, "kept": 8, "dropped": {"too long": 1}, "cut": 0, "moved": 0}
        parameters = {"learned": 768, "all": 5000}
        run.write("report.json", {"parameters": parameters, "rows": {"fit": account}, "results": list(results)})
        run.metrics(1, {"fit/loss": 2.0 + seed})
        run.metrics(2, {"fit/loss": 1.0 + seed})
        run.status("done")
        return run

    def failed(self, row: str, seed: int, error: str, settings: Mapping[str, str] | None = None) -> Ledger:
        """A job that ended with an error."""
        run = self.job(row, seed, settings)
        run.status("failed", error=error)
        return run
