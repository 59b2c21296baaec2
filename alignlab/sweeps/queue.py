"""What SLURM's own queue says of our jobs. Unlike its accounting, which submitit asks, every cluster has it."""

from __future__ import annotations

import os
import subprocess

GONE = "gone"
"""A job that the queue does not know any more."""
OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
    GONE,
}
"""States of a job that does not run, and will not, unless it is put back into the queue a moment later."""
ANSWER_SECONDS = 60


class Queue:
    """One look at the queue."""

    def __init__(self) -> None:
        command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%F %K %T"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError):
            self._states: dict[str, str] | None = None  # the controller is away: nothing is known
            return
        self._states = {}
        for line in done.stdout.splitlines():
            array, place, state = line.split()
            self._states[array if place == "N/A" else f"{array}_{place}"] = state

    def state(self, job: str) -> str | None:
        """A job's state, GONE where the queue has forgotten it, None where the queue did not answer."""
        return None if self._states is None else self._states.get(job, GONE)

    def over(self, job: str) -> bool:
        """Whether the job has surely ended."""
        return self.state(job) in OVER

    def holds(self, job: str) -> bool:
        """Whether the job surely waits or runs."""
        return self.state(job) not in (None, *OVER)
