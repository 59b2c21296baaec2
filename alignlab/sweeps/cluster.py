"""What the jobs of a sweep need on a cluster: resources by the size of a model, a copy of the code, the command of one job, and
the states in SLURM's queue."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignlab.command_line import CONF, OWN_CONFIGS, show_words
from alignlab.config import RunConfig
from alignlab.errors import AlignlabError, ConfigError, SweepError
from alignlab.models.config import ModelConfig
from alignlab.registry import deferred
from alignlab.training.config import SlurmLaunch

ROOT = Path(__file__).parents[2]
"""Where the package is: a checkout, or the folder that it was installed into."""
PARTS = ("run.py", "alignlab", "conf", "experiments", "hydra_plugins")
"""What a run needs; the files that are copied where there is no git checkout."""
LARGEST = 256 << 20
"""Bytes of a copy of the code at most."""
CHUNK = 1 << 20
"""Bytes of a file that are read at once."""
GONE = "gone"
"""State of a job that the queue does not know any more."""
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
"""States of a job that has ended, and does not run again unless it is put back into the queue a moment later."""
ANSWER_SECONDS = 60


@dataclass(frozen=True)
class Resources:
    """What a job asks for, `cpus` for each of its processes; None leaves it to the cluster. `parameters`: of its model, None
    where nothing here tells them."""

    gpus: int | None = None
    memory_gb: int | None = None
    cpus: int | None = None
    parameters: int | None = None

    def sentence(self) -> str:
        """For a plan: `4 GPUs, 8 CPU cores for each process, 128 GB of memory, for a model of 8.03 billion parameters`."""
        gpus = f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else "no GPU asked for"
        memory = f", {self.memory_gb} GB of memory" if self.memory_gb else ""
        cores = f", {self.cpus} CPU core{'s' if self.cpus > 1 else ''} for each process" if self.cpus else ""
        size = "a size that is not known here" if self.parameters is None else _counted(self.parameters)
        return f"{gpus}{cores}{memory}, for a model of {size}"


def _counted(parameters: int) -> str:
    for size, name in ((10**9, " billion"), (10**6, " million")):
        if parameters >= size:
            return f"{parameters / size:.3g}{name} parameters"
    return f"{parameters:,} parameters"


def resources_of(config: RunConfig) -> Resources:
    """What a job on SLURM asks for: as launch says, or by the size of its model, with GPUs that divide its batches."""
    launch = config.launch
    if not isinstance(launch, SlurmLaunch):
        return Resources()
    count = _parameters(json.dumps(config.plain["model"], sort_keys=True), config.model)
    fitting = [size for size in launch.sizes if size.billions is None or (count or 0) <= size.billions * 1e9]
    gpus, memory, cpus = launch.gpus, launch.memory_gb, launch.cpus or config.trainer.threads
    if fitting:
        gpus = _dealing(config, fitting[0].gpus) if gpus is None else gpus
        memory = fitting[0].memory_gb if memory is None else memory
        cpus = fitting[0].cpus if cpus is None else cpus
    return Resources(gpus, memory, cpus, count)


def _dealing(config: RunConfig, gpus: int | None) -> int | None:
    """The largest number of processes, at most so many, among which every batch can be dealt out."""

    def deals(processes: int) -> bool:
        try:
            for fit in config.method.fits().values():
                config.trainer.micro(fit.batch, processes)
        except ConfigError:
            return False
        return True

    return next((count for count in range(gpus, 1, -1) if deals(count)), 1) if gpus else gpus


_SIZES: dict[str, int | None] = {}


def _parameters(key: str, model: ModelConfig) -> int | None:
    """Of a model, without its weights; None for one of the hub of which nothing here tells the shape. `key`: names it."""
    if key not in _SIZES:
        from alignlab.models.backbone import skeleton

        try:
            known = model.source != "hub" or model.facts or model.is_here
            _SIZES[key] = skeleton(model).num_parameters() if known else None
        except (AlignlabError, ValueError):  # the job is refused for it when it is looked at
            _SIZES[key] = None
    return _SIZES[key]


def snapshot(into: Path, runs: Path) -> Path:
    """A copy of the code in a folder named by a hash of its contents, made once, so that edits do not reach waiting jobs.

    Of a git checkout it has all committed files, as they are now, and of the others those of the package, the configs and the
    experiments that git does not ignore: data that lies beside the code is left out. It is a checkout of the same commit that
    shares the history of the original: `git diff` in it shows what was not committed. The folder of runs is left out, because
    it changes while jobs run.
    """
    files = _files(runs.resolve())
    target = into.absolute() / _digest(files)
    into = target.parent
    if not target.is_dir():
        into.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".part-", dir=into))
        for file in files:
            (unfinished / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, unfinished / file, follow_symlinks=False)
        _remember_commit(unfinished)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(target)
        except OSError:  # another submission of the same code was faster
            shutil.rmtree(unfinished)
            if not target.is_dir():
                raise
    return target


def place_of(into: Path, runs: Path) -> Path:
    """Where `snapshot` puts a copy; none is made."""
    return into.absolute() / _digest(_files(runs.resolve()))


def _files(runs: Path) -> list[Path]:
    """The files to copy, relative to ROOT, sorted, without the runs; a link is one file."""
    root = ROOT.resolve()
    around = root.is_relative_to(runs)  # the folder of runs contains the code
    listed = _git(ROOT, "ls-files", "-z", "--cached")
    if listed is not None:
        others = _git(ROOT, "ls-files", "-z", "--others", "--exclude-standard", "--", *PARTS) or ""
        names = {Path(name) for name in f"{listed}\0{others}".split("\0") if name}
    else:
        every = (path for part in PARTS for path in [ROOT / part, *(ROOT / part).rglob("*")])
        names = {path.relative_to(ROOT) for path in every if "__pycache__" not in path.parts}
    names = {name for name in names if (name.parts[0] in PARTS if around else not (root / name).is_relative_to(runs))}
    found = sorted(name for name in names if (ROOT / name).is_symlink() or (ROOT / name).is_file())
    size = sum((ROOT / name).lstat().st_size for name in found)
    if size > LARGEST:
        largest = max(found, key=lambda name: (ROOT / name).lstat().st_size)
        raise SweepError(
            f"the code to copy for the jobs has {size >> 20} MiB, and at most {LARGEST >> 20} are copied; the largest file is"
            f" {largest}: move it out of the code, or let git ignore it."
        )
    return found


def _digest(files: list[Path]) -> str:
    """Eight characters of a hash of the code and the commit."""
    read = hashlib.sha256((_git(ROOT, "rev-parse", "HEAD") or "").encode())
    for file in files:
        path = ROOT / file
        read.update(f"{file} {path.lstat().st_size} ".encode())
        if path.is_symlink():
            read.update(os.readlink(path).encode())
            continue
        with path.open("rb") as content:
            while chunk := content.read(CHUNK):
                read.update(chunk)
    return read.hexdigest()[:8]


def _remember_commit(copy: Path) -> None:
    """Makes the copy a checkout of the same commit, if ROOT is one; its files stay as they are."""
    if _git(ROOT, "rev-parse", "HEAD") is None:
        return
    empty = copy / ".clone"
    if _git(ROOT, "clone", "-q", "--shared", "--no-checkout", str(ROOT), str(empty)) is not None:
        (empty / ".git").rename(copy / ".git")
        _git(copy, "reset", "-q")
    shutil.rmtree(empty, ignore_errors=True)


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git; None if it fails, or if the folder only lies inside another checkout."""
    if not (folder / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip("\n") if done.returncode == 0 else None


@dataclass(frozen=True)
class Command:
    """`alignlab run OVERRIDES`, as submitit runs it.

    `code`: the snapshot, in which the process was started; `home`: the folder where the sweep was submitted, to which relative
    paths refer; `own_configs`: the user's folders of configs, as the environment variable has them.
    """

    overrides: tuple[str, ...]
    code: str
    home: str
    own_configs: str = ""

    def __call__(self) -> float | None:
        """Runs it and returns the headline number."""
        from hydra import compose, initialize_config_dir

        if Path(self.code).resolve() != ROOT.resolve():
            raise SweepError(f"this job has its code from {ROOT} and not from its snapshot {self.code}; clear PYTHONPATH.")
        os.chdir(self.home)
        _join()
        os.environ[OWN_CONFIGS] = self.own_configs
        show_words(logging.INFO)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            raw = compose("run", list(self.overrides))
        value: float | None = deferred("alignlab.commands.run.run")(raw)
        return value

    def checkpoint(self) -> Any:
        """What submitit submits again after a signal: the same command, which resumes its run; force=true counts only once."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, overrides=(*self.overrides, "force=false")))


def _join() -> None:
    """Sets the environment variables for torch's processes of this job, as torchrun would."""
    from submitit.helpers import JobEnvironment, TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


class Queue:
    """The states of the user's own jobs by one call of squeue, which unlike sacct (submitit's way) every cluster has."""

    def __init__(self) -> None:
        command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%F %K %T"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError):
            self._states: dict[str, str] | None = None  # the controller does not answer: nothing is known
            return
        self._states = {}
        for line in done.stdout.splitlines():
            array, place, state = line.split()
            self._states[array if place == "N/A" else f"{array}_{place}"] = state

    def state(self, job: str) -> str | None:
        """A job's state, GONE if the queue does not know it, None if the queue did not answer."""
        return None if self._states is None else self._states.get(job, GONE)

    def over(self, job: str) -> bool:
        """Whether the job has surely ended."""
        return self.state(job) in OVER

    def holds(self, job: str) -> bool:
        """Whether the job surely waits or runs."""
        return self.state(job) not in (None, *OVER)
