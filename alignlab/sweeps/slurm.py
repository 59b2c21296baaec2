"""The launcher that submits the jobs of a sweep through submitit, as one SLURM array for each size of resources, and waits for
them if asked."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as SubmititLauncher
from omegaconf import OmegaConf
from submitit.slurm.slurm import SlurmExecutor as SubmititExecutor

from alignlab.command_line import OWN_CONFIGS
from alignlab.config import headline_of
from alignlab.errors import AlignlabError, SweepError
from alignlab.files import alone
from alignlab.registry import typed
from alignlab.sweeps.cluster import Command, Queue, Resources, place_of, snapshot
from alignlab.tracking.ledger import QUEUED, STATUS, Ledger, mark_of, now, state_of
from alignlab.tracking.sweeps import SweepLedger
from alignlab.training.config import SlurmLaunch

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 15
"""How long after the end of a job its result may still arrive over a shared disk, or the job return to the queue."""
LOOK_SECONDS = (2, 30)
"""Between two calls of squeue: at first, and in a sweep of hours."""
LARGEST_ARRAY = 1000
"""Jobs of one array; SLURM's own default allows 1001."""
_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)(: |$)")
"""The line of a traceback that names the error; its message may have more lines."""
ENDS = ("done", "failed", "preempted", "interrupted")
"""States that a run writes itself at its end."""


class SlurmLauncher(SubmititLauncher):
    """Hydra's submitit launcher, with three differences: jobs run a copy of the code made at submission, a failed job does not
    hide the results of others, and a job that left the queue without a result counts as failed.

    The ledger of a run whose job failed says so, even if the job was killed or never began.
    `folders`: the run folder of each job, empty where they are not known. `resources`: what each job asks for, likewise; jobs
    that ask for the same are one array.
    """

    folders: Sequence[Path] = ()
    resources: Sequence[Resources] = ()

    def scripts(self, job_overrides: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
        """Of each array: what it is, and the script that sbatch would get for it now. Nothing is written or submitted."""
        home, launch = self._home(job_overrides[0]), self._launch()
        code = place_of(home / "code", self._runs())
        made = []
        for part, at_once in arrays(self._alike(range(len(job_overrides))), launch.parallel):
            asked = max((self._asked(index) for index in part), key=lambda each: each.parameters or 0)
            executor = _Written(home / "slurm")
            given = self._parameters(code, asked, max(1, at_once), prefix="")
            own = executor._convert_parameters({key: value for key, value in given.items() if value is not None})
            executor.update_parameters(**own, **({} if at_once else {"dependency": "afterany:THE ARRAY BEFORE"}))
            if len(part) > 1:
                executor.parameters["map_count"] = len(part)
            jobs = f"{len(part)} jobs" if len(part) > 1 else "1 job"
            hours = len(part) * (asked.gpus or 0) * launch.minutes / 60
            turns = 1 + launch.retries
            cost = f"; at most {hours:,.3g} GPU hours in one turn of all, and each has up to {turns} turns" if hours else ""
            made.append(
                (f"{jobs}: {asked.sentence()}{cost}", executor._make_submission_file_text(executor._submitit_command_str, ""))
            )
        return made

    def _alike(self, indices: Iterable[int]) -> list[list[int]]:
        """Jobs that ask for the same, together, in the order of the first of each kind."""
        groups: dict[Resources, list[int]] = {}
        for index in indices:
            groups.setdefault(replace(self._asked(index), parameters=None), []).append(index)
        return list(groups.values())

    def _asked(self, index: int) -> Resources:
        return self.resources[index] if self.resources else Resources()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Submits and waits: every job's result, in the order asked for; with launch.detach=true, an empty list at once.

        Jobs that an earlier command left in the queue are not submitted again. Raises SweepError if SLURM refuses the jobs, and
        if the queue does not answer whether it has them already.
        """
        launch = self._launch()
        missing = [command for command in ("sbatch", "srun") if shutil.which(command) is None]  # submitit looks for srun
        if missing:
            raise SweepError(
                f"launch=slurm needs SLURM's commands sbatch and srun, and {' and '.join(missing)}"
                f" {'is' if len(missing) == 1 else 'are'} not here; submit from a login node."
            )
        indices = range(len(job_overrides))
        with alone(self._home(job_overrides[0]) / ".submitting", "waits for another command that submits jobs of this sweep"):
            queue = Queue()
            jobs = {index: job for index in indices if (job := self._earlier(queue, index)) is not None}
            new = [index for index in indices if index not in jobs]
            before: str | None = None
            for part, at_once in arrays(self._alike(new), launch.parallel):
                earlier = {index: self._status(index) for index in part}  # a job may end before it is noted down
                commands, behind = [job_overrides[index] for index in part], None if at_once else before
                submitted = self._submit(commands, self._asked(part[0]), max(1, at_once), behind)
                before = submitted[0].job_id.partition("_")[0]
                for index, job in zip(part, submitted, strict=True):
                    jobs[index] = job
                    self._note(index, job, earlier[index])
        if launch.detach:
            return []
        log.info("waiting for the jobs; they keep running if this command is stopped, and the same command waits again")
        results = self._wait(jobs)
        return [results[index] for index in indices]

    def _submit(self, commands: Sequence[Sequence[str]], asked: Resources, at_once: int, behind: str | None) -> list[Any]:
        """Jobs of submitit, one per command, as one array, of which so many run at once; `asked`: by each; `behind`: the job id
        of another array, which has to end before."""
        import submitit

        home = self._home(commands[0])
        code = snapshot(home / "code", self._runs())
        own_configs = os.environ.get(OWN_CONFIGS, "")
        calls = [Command(tuple(overrides), str(code), str(Path.cwd()), own_configs) for overrides in commands]
        executor = submitit.AutoExecutor(home / "slurm", "slurm", slurm_max_num_timeout=self.params["max_num_timeout"])
        executor.update_parameters(**self._parameters(code, asked, at_once))
        if behind:
            executor.update_parameters(slurm_dependency=f"afterany:{behind}")
        cluster = {key: value for key, value in os.environ.items() if key == "SLURM_CONF"}
        try:
            with submitit.helpers.clean_env():  # inside a job of SLURM, its own options would apply to the new jobs
                os.environ.update(cluster)
                jobs = executor.submit_array(calls)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise SweepError(f"SLURM takes no jobs: {' '.join(str(error).split())}") from error
        log.info("SLURM has %d jobs: %s; logs in %s", len(jobs), jobs[0].job_id.partition("_")[0], home / "slurm")
        return [job.task(0) for job in jobs]  # the main process has the result

    def _home(self, overrides: Sequence[str]) -> Path:
        """The sweep's folder, by the name that the sweeper adds to the overrides of each job."""
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        name = next((override.value() for override in reversed(parsed) if override.key_or_group == "sweep"), None)
        return SweepLedger(self._runs(), str(name or "unnamed")).folder

    def _runs(self) -> Path:
        assert self.config is not None
        return Path(str(self.config.paths.runs))

    def _launch(self) -> SlurmLaunch:
        """The group launch with its types, which Hydra leaves as it was written, such as "7" for a number."""
        assert self.config is not None
        given: Any = OmegaConf.to_container(self.config.launch, resolve=True)
        launch: SlurmLaunch = typed("launch", given, SlurmLaunch)
        return launch

    def _parameters(self, code: Path, asked: Resources, at_once: int, prefix: str = "slurm_") -> dict[str, Any]:
        """The parameters by submitit's names, those of SLURM alone with a prefix for its executor of any kind. A job starts in
        the snapshot, so that Python imports the code from there."""
        own = set(OmegaConf.structured(BaseQueueConf).keys())
        given = {key: value for key, value in self.params.items() if key not in ("submitit_folder", "max_num_timeout")}
        path = shlex.quote(str(code))
        start = [f"cd {path}", f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}"]
        given["setup"] = [*(given["setup"] or []), *start]
        given["gpus_per_node"] = given["gpus_per_node"] or asked.gpus
        given["mem_gb"] = given["mem_gb"] or asked.memory_gb
        given["cpus_per_task"] = given["cpus_per_task"] or asked.cpus
        given["tasks_per_node"] = max(given["tasks_per_node"], given["gpus_per_node"] or 1)  # a process per GPU
        given["array_parallelism"] = at_once
        return {key if key in own else f"{prefix}{key}": value for key, value in given.items()}

    def _earlier(self, queue: Queue, index: int) -> Any:
        """The job that already is in the queue for a run, None where there is none."""
        from submitit.slurm.slurm import SlurmJob

        queued = Ledger(self.folders[index]).found(QUEUED) if self.folders else {}
        if "job" not in queued:
            return None
        if queue.state(queued["job"]) is None:
            raise SweepError(
                f"SLURM's queue does not answer, and may have job {queued['job']} for {self.folders[index]} already: try again"
                " when squeue answers, so that nothing runs twice."
            )
        if not queue.holds(queued["job"]):
            return None
        log.info("in the queue already, as %s: %s", queued["job"], self.folders[index])
        return SlurmJob(queued["log"].rpartition("/")[0], queued["job"])

    def _status(self, index: int) -> str | None:
        """What tells the present status of a run from the next one; clocks of two machines need not agree."""
        return mark_of(Ledger(self.folders[index]).found(STATUS) or None) if self.folders else None

    def _note(self, index: int, job: Any, status: str | None) -> None:
        if self.folders:
            queued = {"job": job.job_id, "time": now(), "log": str(job.paths.stdout), "status": status}
            Ledger(self.folders[index]).write(QUEUED, queued)

    def _wait(self, jobs: Mapping[int, Any]) -> dict[int, JobReturn]:
        """Each job's result; a job that ended without one has failed."""
        begun = time.monotonic()
        results: dict[int, JobReturn] = {}
        ended: dict[int, float] = {}
        while True:
            looked = time.monotonic()
            missing = {index: job for index, job in jobs.items() if index not in results}
            files = _files_in(job.paths.folder for job in missing.values())
            results |= {index: self._returned(index, job) for index, job in missing.items() if job.paths.result_pickle in files}
            missing = {index: job for index, job in missing.items() if index not in results}
            if not missing:
                return results
            queue = Queue()
            ended = {index: ended.get(index, looked) for index, job in missing.items() if queue.over(job.job_id)}
            lost = [index for index in ended if looked - ended[index] > PATIENCE_SECONDS]
            results |= {index: self._lost(index, jobs[index], queue) for index in lost}
            if len(results) < len(jobs):
                time.sleep(min(LOOK_SECONDS[1], max(LOOK_SECONDS[0], (looked - begun) / 10)))

    def _returned(self, index: int, job: Any) -> JobReturn:
        """The result that a job has written; of an error, the line of its traceback that names it."""
        from submitit.core.utils import pickle_load

        outcome, content = pickle_load(job.paths.result_pickle)
        if outcome == "success":
            return JobReturn(status=JobStatus.COMPLETED, _return_value=content)
        lines = str(content).strip().splitlines()
        kind, _, said = next(filter(_ERROR.match, reversed(lines)), lines[-1]).partition(": ")
        package, _, name = kind.rpartition(".")
        why = said if package == AlignlabError.__module__ else f"{name}: {said}" if said else name
        return self._failed(index, job, why.rstrip("."))

    def _lost(self, index: int, job: Any, queue: Queue) -> JobReturn:
        """The result of a job that was killed before it wrote one, from its run's ledger."""
        if self.folders and state_of(self.folders[index]).name == "done":
            return JobReturn(status=JobStatus.COMPLETED, _return_value=headline_of(self.folders[index] / "report.json"))
        return self._failed(index, job, f"its job {job.job_id} has left the queue ({queue.state(job.job_id)}) and no result")

    def _failed(self, index: int, job: Any, why: str) -> JobReturn:
        error = SweepError(f"{why}; its log: {job.paths.stdout}")
        if self.folders:
            _write_down(Ledger(self.folders[index]), job.job_id, str(error))
        return JobReturn(status=JobStatus.FAILED, _return_value=error)


class _Written(SubmititExecutor):
    """submitit's executor where scripts are only written, which needs no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        """As if SLURM were here."""
        return 2


def arrays(alike: Sequence[Sequence[int]], parallel: int) -> Iterator[tuple[Sequence[int], int]]:
    """Jobs in parts that each fit an array, and how many of a part run at once: together `parallel`, by the size of the parts.
    Where that is 0, the part has to wait for the one before it. `alike`: jobs that may be in one array, together."""
    parts = [jobs[first : first + LARGEST_ARRAY] for jobs in alike for first in range(0, len(jobs), LARGEST_ARRAY)]
    every, before = sum(map(len, parts)), 0
    for part in parts:
        end, begin = (-(-parallel * place // every) for place in (before + len(part), before))
        before += len(part)
        yield part, end - begin


def _files_in(folders: Iterable[Path]) -> set[Path]:
    """Every file in these folders; each folder is read once."""
    found = set()
    for folder in set(folders):
        with suppress(PermissionError):  # a change refreshes the cache of a shared disk; submitit does the same
            folder.chmod(folder.stat().st_mode)
        found |= set(folder.iterdir())
    return found


def _write_down(run: Ledger, job: str, error: str) -> None:
    """Writes the failure of a job into its run's ledger, unless the run has ended by itself."""
    if run.found(QUEUED).get("job") != job:
        return  # it was submitted again
    if state_of(run.folder).name not in ENDS:
        run.status("failed", error=error)
    (run.folder / QUEUED).unlink(missing_ok=True)
