"""The jobs of a sweep as one SLURM array, waited for or not. The queueing itself is submitit's."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as SubmititLauncher
from omegaconf import DictConfig, OmegaConf

from alignlab.config import headline_of
from alignlab.errors import AlignlabError, SweepError
from alignlab.files import alone
from alignlab.sweeps.queue import Queue
from alignlab.sweeps.remote import Command
from alignlab.sweeps.snapshot import snapshot
from alignlab.tracking.ledger import QUEUED, Ledger, now, state_of
from alignlab.tracking.sweeps import SweepLedger

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 15
"""How long a result may still arrive over a shared disk, or a job return to the queue, after the queue says that it ended."""
LOOK_SECONDS = (2, 30)
"""Between two looks at the queue: at first, and in a sweep of hours."""
LARGEST_ARRAY = 1000
"""Jobs of one array; SLURM's own default allows 1001."""
_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)(: |$)")
"""The line of a traceback that names the error; its message may go on for more lines."""
ENDS = ("done", "failed", "preempted", "interrupted")
"""States that a run has from itself."""
FROM_SHEET = {
    "partition": "partition",
    "account": "account",
    "gpus_per_node": "gpus",
    "cpus_per_task": "cpus",
    "mem_gb": "memory_gb",
    "timeout_min": "minutes",
    "signal_delay_s": "signal_seconds",
    "max_num_timeout": "retries",
    "array_parallelism": "parallel",
    "setup": "setup",
    "additional_parameters": "extra",
}
"""Keys of the launcher that `launch` fills in; the others can be given as hydra.launcher.KEY=VALUE."""


def settings(target: str) -> DictConfig:
    """The launcher's own config, which takes what it can from `launch`."""
    made = OmegaConf.structured(SlurmQueueConf(_target_=target, name="alignlab", stderr_to_stdout=True))
    for key, source in FROM_SHEET.items():
        made[key] = f"${{launch.{source}}}"
    return made


class SlurmLauncher(SubmititLauncher):
    """Hydra's, except that jobs run the code as it was submitted, a failed one hides no other, and none is waited for in vain.

    A run whose job failed says so itself, even where the job was killed or never began.
    `folders`: the run folder of each job, where they are known.
    """

    folders: Sequence[Path] = ()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Submits, and waits: every job's result in the order asked for; with launch.detach=true, nothing.

        Jobs that an earlier command left in the queue are not submitted again. Raises SweepError where SLURM takes no job, and
        where it does not say which of them it has.
        """
        assert self.config is not None
        if shutil.which("sbatch") is None:
            raise SweepError("launch=slurm needs SLURM's command sbatch, which is not here; submit from a login node.")
        places = range(len(job_overrides))
        with alone(self._home(job_overrides[0]) / ".submitting", "waits for another command that submits jobs of this sweep"):
            queue = Queue()
            jobs = {place: job for place in places if (job := self._earlier(queue, place)) is not None}
            new = [place for place in places if place not in jobs]
            for first in range(0, len(new), LARGEST_ARRAY):
                part = new[first : first + LARGEST_ARRAY]
                begun = now()  # a job that ends at once must not seem to have been queued afterwards
                for place, job in zip(part, self._submit([job_overrides[place] for place in part]), strict=True):
                    jobs[place] = job
                    self._note(place, job, begun)
        if self.config.launch.detach:
            return []
        log.info("waiting for them; they go on if this is stopped, and the same command waits again")
        results = self._wait(jobs)
        return [results[place] for place in places]

    def _submit(self, commands: Sequence[Sequence[str]]) -> list[Any]:
        """Jobs of submitit, one per command, as one array."""
        import submitit

        home = self._home(commands[0])
        code = snapshot(home / "code", self._runs())
        calls = [Command(tuple(words), str(code), str(Path.cwd())) for words in commands]
        executor = submitit.AutoExecutor(home / "slurm", "slurm", slurm_max_num_timeout=self.params["max_num_timeout"])
        executor.update_parameters(**self._parameters(code))
        cluster = {key: value for key, value in os.environ.items() if key == "SLURM_CONF"}
        try:
            with submitit.helpers.clean_env():  # from within a job of SLURM, its options would be taken for the new ones
                os.environ.update(cluster)
                jobs = executor.submit_array(calls)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise SweepError(f"SLURM takes no jobs: {' '.join(str(error).split())}") from error
        log.info("SLURM has %d jobs: %s; logs in %s", len(jobs), jobs[0].job_id.partition("_")[0], home / "slurm")
        return [job.task(0) for job in jobs]  # the process that leads has the result

    def _home(self, words: Sequence[str]) -> Path:
        """The sweep's folder, by the name that the sweeper gives to each of its jobs."""
        every = OverridesParser.create().parse_overrides(list(words))
        name = next((word.value() for word in reversed(every) if word.key_or_group == "sweep"), None)
        return SweepLedger(self._runs(), str(name or "unnamed")).folder

    def _runs(self) -> Path:
        assert self.config is not None
        return Path(self.config.paths.runs)

    def _parameters(self, code: Path) -> dict[str, Any]:
        """As submitit names them. A job starts in the snapshot, so that Python finds the code there before any other."""
        own = set(OmegaConf.structured(BaseQueueConf).keys())
        given = {key: value for key, value in self.params.items() if key not in ("submitit_folder", "max_num_timeout")}
        path = shlex.quote(str(code))
        start = [f"cd {path}", f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}"]
        given["setup"] = [*(given["setup"] or []), *start]
        given["tasks_per_node"] = max(given["tasks_per_node"], given["gpus_per_node"] or 1)  # a process per GPU
        return {key if key in own else f"slurm_{key}": value for key, value in given.items()}

    def _earlier(self, queue: Queue, place: int) -> Any:
        """The job that already is in the queue for a run, None where there is none."""
        from submitit.slurm.slurm import SlurmJob

        told = Ledger(self.folders[place]).read(QUEUED) if self.folders else None
        if told is None:
            return None
        if queue.state(told["job"]) is None:
            raise SweepError(
                f"SLURM's queue does not answer, and may have job {told['job']} for {self.folders[place]} already: try again"
                " when squeue answers, so that nothing runs twice."
            )
        if not queue.holds(told["job"]):
            return None
        log.info("in the queue already, as %s: %s", told["job"], self.folders[place])
        return SlurmJob(told["log"].rpartition("/")[0], told["job"])

    def _note(self, place: int, job: Any, begun: str) -> None:
        if self.folders:
            told = {"job": job.job_id, "time": begun, "log": str(job.paths.stdout)}
            Ledger(self.folders[place]).write(QUEUED, told)

    def _wait(self, jobs: Mapping[int, Any]) -> dict[int, JobReturn]:
        """Each job's result, at the first look that finds it; a job that ended without one has failed."""
        begun = time.monotonic()
        results: dict[int, JobReturn] = {}
        ended: dict[int, float] = {}
        while True:
            looked = time.monotonic()
            missing = {place: job for place, job in jobs.items() if place not in results}
            left = _left_in(job.paths.folder for job in missing.values())
            results |= {place: self._returned(place, job) for place, job in missing.items() if job.paths.result_pickle in left}
            missing = {place: job for place, job in missing.items() if place not in results}
            if not missing:
                return results
            queue = Queue()
            ended = {place: ended.get(place, looked) for place, job in missing.items() if queue.over(job.job_id)}
            lost = [place for place in ended if looked - ended[place] > PATIENCE_SECONDS]
            results |= {place: self._lost(place, jobs[place], queue) for place in lost}
            if len(results) < len(jobs):
                time.sleep(min(LOOK_SECONDS[1], max(LOOK_SECONDS[0], (looked - begun) / 10)))

    def _returned(self, place: int, job: Any) -> JobReturn:
        """What a job has left; of an error, the line of its traceback that names it."""
        from submitit.core.utils import pickle_load

        outcome, content = pickle_load(job.paths.result_pickle)
        if outcome == "success":
            return JobReturn(status=JobStatus.COMPLETED, _return_value=content)
        lines = str(content).strip().splitlines()
        kind, _, said = next(filter(_ERROR.match, reversed(lines)), lines[-1]).partition(": ")
        package, _, name = kind.rpartition(".")
        why = said if package == AlignlabError.__module__ else f"{name}: {said}" if said else name
        return self._failed(place, job, why.rstrip("."))

    def _lost(self, place: int, job: Any, queue: Queue) -> JobReturn:
        """Of a job that was killed before it could say how it ended: what its run's ledger says, and where its log is."""
        if self.folders and state_of(self.folders[place]).name == "done":
            return JobReturn(status=JobStatus.COMPLETED, _return_value=headline_of(self.folders[place] / "report.json"))
        return self._failed(place, job, f"its job {job.job_id} has left the queue ({queue.state(job.job_id)}) and no result")

    def _failed(self, place: int, job: Any, why: str) -> JobReturn:
        error = SweepError(f"{why}; its log: {job.paths.stdout}")
        if self.folders:
            _write_down(Ledger(self.folders[place]), job.job_id, str(error))
        return JobReturn(status=JobStatus.FAILED, _return_value=error)


def _left_in(folders: Iterable[Path]) -> set[Path]:
    """Every file in these folders, each of which is read once."""
    found = set()
    for folder in set(folders):
        with suppress(PermissionError):  # a change makes a shared disk look again; submitit does the same
            folder.chmod(folder.stat().st_mode)
        found |= set(folder.iterdir())
    return found


def _write_down(run: Ledger, job: str, error: str) -> None:
    """Makes a run say that its job failed, where it does not know: a process that was killed, or that never began."""
    if (run.read(QUEUED) or {}).get("job") != job:
        return  # somebody has submitted it again
    if state_of(run.folder).name not in ENDS:
        run.status("failed", error=error)
    (run.folder / QUEUED).unlink(missing_ok=True)
