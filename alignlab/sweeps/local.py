"""Jobs one after the other in this process, beside other sweeps that do the same."""

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
    """Hydra's own, that takes up first what no other process is at: two sweeps of the same jobs share them.

    `folders`: the run folder of each job, where they are known.
    """

    folders: Sequence[Path] = ()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Every job's result, in the order asked for."""
        waiting = list(range(len(job_overrides)))
        results: dict[int, JobReturn] = {}
        while waiting:
            place = next((place for place in waiting if not self._is_running(place)), waiting[0])
            waiting.remove(place)
            log.info("job %d of %d: %s", len(results) + 1, len(job_overrides), self._name(place))
            (results[place],) = super().launch([job_overrides[place]], initial_job_idx + place)
        return [results[place] for place in range(len(job_overrides))]

    def _name(self, place: int) -> str:
        return str(self.folders[place]) if self.folders else f"#{place}"

    def _is_running(self, place: int) -> bool:
        return place < len(self.folders) and held(self.folders[place] / LOCK) is True


class NoSlurm(BasicLauncher):
    """Stands in for a launcher that is not installed."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Raises SweepError that says what to install."""
        raise SweepError("launch=slurm needs hydra-submitit-launcher, which is not here: pip install 'alignlab[slurm]'.")
