"""The launcher that runs the jobs of a sweep in this process, and the one that says how to install SLURM's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn

from alignlab.errors import SweepError
from alignlab.files import held
from alignlab.tracking.ledger import LOCK

log = logging.getLogger(__name__)


class LocalLauncher(BasicLauncher):
    """Hydra's launcher, one job after the other in this process, first those that no other process runs: two sweeps of the same
    jobs share them.

    `folders`: the run folder of each job, empty where they are not known.
    """

    folders: Sequence[Path] = ()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Every job's result, in the order asked for."""
        waiting = list(range(len(job_overrides)))
        results: dict[int, JobReturn] = {}
        while waiting:
            index = next((index for index in waiting if not self._is_running(index)), waiting[0])
            waiting.remove(index)
            name = str(self.folders[index]) if self.folders else f"#{index}"
            log.info("job %d of %d: %s", len(results) + 1, len(job_overrides), name)
            (results[index],) = super().launch([job_overrides[index]], initial_job_idx + index)
        return [results[index] for index in range(len(job_overrides))]

    def _is_running(self, index: int) -> bool:
        return index < len(self.folders) and held(self.folders[index] / LOCK) is True


class NoSlurm(BasicLauncher):
    """Takes the place of the SLURM launcher where hydra-submitit-launcher is not installed."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Raises SweepError that names the package to install."""
        raise SweepError("launch=slurm needs hydra-submitit-launcher, which is not here: pip install 'alignlab[slurm]'.")
