"""Schemas of the `launch` configs: where the jobs of a sweep run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignlab.errors import ConfigError


@dataclass
class LocalLaunch:
    """Here, one after the other."""

    name: str


@dataclass
class SlurmLaunch:
    """One job of a SLURM array each. null leaves a resource to the cluster.

    `gpus`: of one job, which has a process for each; `cpus`: of a process; `memory_gb`: of a job. `minutes`: its time limit.
    `signal_seconds` before it a job saves and goes back into the queue, at most `retries` times. So it does when it is
    preempted, on a cluster that sends the signal then too (conf/launch/slurm.yaml). `parallel`: jobs at a time. `setup`: shell
    commands before a job. `extra`: further options of sbatch, without their dashes. `detach`: submit and return at once.
    """

    name: str
    partition: str | None
    account: str | None
    gpus: int | None
    cpus: int | None
    memory_gb: int | None
    minutes: int
    signal_seconds: int
    retries: int
    parallel: int
    setup: list[str]
    extra: dict[str, Any]
    detach: bool

    def check(self) -> None:
        """Raises ConfigError for amounts that make no job, and for a signal that would come before the job."""
        for key in ("gpus", "cpus", "memory_gb", "minutes", "signal_seconds", "parallel"):
            amount = getattr(self, key)
            if amount is not None and amount < 1:
                raise ConfigError(f"launch.{key}={amount} must be 1 or more{'' if key in NEEDED else ', or null'}.")
        if self.retries < 0:
            raise ConfigError(f"launch.retries={self.retries} must not be negative; 0 never goes on after the time limit.")
        if self.signal_seconds >= 60 * self.minutes:
            raise ConfigError(
                f"launch.signal_seconds={self.signal_seconds} must be below launch.minutes={self.minutes} in seconds: a job is"
                " told that long before its limit."
            )


NEEDED = ("minutes", "signal_seconds", "parallel")
"""Amounts that cannot be left to the cluster."""
