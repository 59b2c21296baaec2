"""Sweeps on a real SLURM: preempted and resumed, failing, killed, out of time, and left alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignlab.tracking.ledger import LOCK, QUEUED, Ledger, state_of
from tests.slurm.cluster import NoClusterError, cluster

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
STEPS = 150
COMMON = (
    "method=red",
    "method.fit.batch=8",
    "data.pairs=64",
    "trainer.threads=1",
    "evaluation=off",
)
CLUSTER = ("launch=slurm", "launch.cpus=1", "launch.minutes=9", "paths.runs=runs")
WRONG = {"killed": "8", "too_long": "4", "refused": "5"}
"""The micro-batches of the sweep that goes wrong, and what happens to each of its jobs."""
PATIENCE_SECONDS = 150
SAID: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "check": True}


@dataclass
class Place:
    """A folder to submit from, and the environment with the cluster."""

    folder: Path
    environment: Mapping[str, str]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`python run.py WORDS` from this folder."""
        command = [sys.executable, str(ROOT / "run.py"), *words, *COMMON]
        pipe, both = subprocess.PIPE, subprocess.STDOUT
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=both, text=True)

    def signal(self, name: str, run: Path) -> None:
        """As SLURM itself would send it to a run's job."""
        subprocess.run(["scancel", f"--signal={name}", self.job(run)], env=self.environment, check=True)

    def job(self, run: Path) -> str:
        """SLURM's number of a run's job."""
        return str((Ledger(run).read(QUEUED) or {})["job"])

    def runs(self, pattern: str) -> list[Path]:
        """Run folders, among them those of jobs that wait."""
        return sorted(path.parent for path in (self.folder / "runs").glob(f"{pattern}/{QUEUED}"))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, said


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def losses(run: Path) -> dict[int, float]:
    """Of each step."""
    return {line["step"]: line["fit/loss"] for line in Ledger(run).history() if "fit/loss" in line}


def log_of(run: Path) -> Path:
    """Where a job says what it does, in all its turns; gone from the run's folder once the job has failed."""
    return Path((Ledger(run).read(QUEUED) or {})["log"])


def process_of(run: Path) -> int:
    """The process that is at a run: the one that holds its lock."""
    inode = str((run / LOCK).stat().st_ino)
    locks = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    return next(int(pid) for _, kind, _, _, pid, place, *_ in locks if kind == "FLOCK" and place.split(":")[2] == inode)


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.parent.name.rpartition("-")[2]) for path in run.glob("stages/fit/checkpoint-*/complete"))


def weights(run: Path) -> bytes:
    return (run / "stages/fit/result/adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With a cluster of its own."""
    try:
        with cluster(tmp_path_factory.mktemp("slurm")) as environment:
            yield Place(tmp_path_factory.mktemp("home"), {**environment, "OMP_NUM_THREADS": "1"})
    except NoClusterError as error:
        pytest.skip(str(error))


@dataclass
class Seen:
    """What two sweeps, submitted one after the other, did and said."""

    submitted: str
    states_then: dict[str, str]
    shown: str
    saved: list[int]
    preempted_at: int
    lived: Path
    waited: tuple[int, str]
    wrong: dict[str, Path]
    logs: dict[str, Path]
    whole: Path


@pytest.fixture(scope="module")
def seen(place: Place) -> Iterator[Seen]:
    """One sweep is waited for, and its first job preempted; the other is left alone, goes wrong, and is asked for again."""
    started: list[subprocess.Popen[str]] = []
    try:
        yield happened(place, started)
    finally:
        for process in started:
            process.kill()
            process.communicate()


def happened(place: Place, started: list[subprocess.Popen[str]]) -> Seen:
    """Both sweeps, to their ends. Four jobs run at a time, so the last one waits until one of the others has left."""
    started.append(place.start("-m", *CLUSTER, "tuner=red,ia3", f"method.fit.steps={STEPS}"))
    until(lambda: len(place.runs("*/seed-0")) == 2)
    micro = f"trainer.micro_batch={','.join(WRONG.values())}"
    words = ("-m", *CLUSTER, micro, "method.fit.steps=400", "launch.retries=0", "seed=1", "tracking=off")
    code, submitted = ended(place.start(*words, "launch.detach=true"))
    assert code == 0, submitted
    wrong = dict(zip(WRONG, sorted(place.runs("*/seed-1"), key=place.job), strict=True))
    states = {name: state_of(run).name for name, run in wrong.items()}
    logs = {name: log_of(run) for name, run in wrong.items()}
    started.append(place.start(*words))

    (lived,) = place.runs("red-red*/seed-0")
    until(lambda: len(losses(lived)) >= 3)
    place.signal("USR2", lived)
    until(lambda: state_of(lived).name == "preempted")
    saved, at = checkpoints(lived), max(losses(lived))
    until(lambda: len(losses(wrong["too_long"])) >= 3 and len(losses(wrong["killed"])) >= 3)
    shown = subprocess.run([sys.executable, "-m", "alignlab", "status", "--runs", str(place.folder / "runs")], **SAID)
    place.signal("USR2", wrong["too_long"])
    os.kill(process_of(wrong["killed"]), signal.SIGKILL)
    whole = place.folder / "whole" / "run"
    alone = (f"method.fit.steps={STEPS}", f"folder={whole}", f"paths.runs={whole.parent}", "tracking=off")
    code, said = ended(place.start(*alone))
    assert code == 0, said
    code, said = ended(started[0])
    assert code == 0, said
    return Seen(submitted, states, shown.stdout, saved, at, lived, ended(started[1]), wrong, logs, whole)


def test_a_preempted_job_saves_the_step_it_is_in(seen: Seen) -> None:
    assert 3 <= seen.preempted_at < STEPS
    assert seen.saved[-1] == seen.preempted_at


def test_it_goes_on_in_the_queue_by_itself_and_ends_with_the_bits_of_a_run_that_was_never_preempted(seen: Seen) -> None:
    assert state_of(seen.lived).name == "done"
    assert weights(seen.lived) == weights(seen.whole)
    assert losses(seen.lived) == losses(seen.whole)
    assert len(losses(seen.whole)) == STEPS


def test_to_the_tracker_it_stays_one_run(seen: Seen) -> None:
    parts = sorted((seen.lived / "wandb").glob("offline-run-*/run-*.wandb"))

    assert len(parts) == 2
    assert len({part.name for part in parts}) == 1


def test_a_detached_sweep_is_submitted_and_not_waited_for(seen: Seen) -> None:
    assert f"{len(WRONG)} jobs submitted" in seen.submitted
    assert set(seen.states_then.values()) <= {"queued", "running"}


def test_status_shows_where_running_jobs_are(seen: Seen) -> None:
    assert len(re.findall(r"running .* fit \d+/400", seen.shown)) == 2, seen.shown


def test_the_same_command_waits_for_jobs_that_are_in_the_queue_and_tells_each_failure(seen: Seen) -> None:
    code, said = seen.waited

    assert code == 1
    assert "0 finished, 3 failed, 0 skipped" in said
    assert said.count("in the queue already") == len(WRONG)
    for log in seen.logs.values():  # of the first submission
        assert f"its log: {log}" in said
        assert log.is_file()


def test_a_job_that_was_killed_is_reported_and_not_waited_for_for_ever(seen: Seen) -> None:
    assert "has left the queue (FAILED) and no result; its log: " in seen.waited[1]


def test_a_job_that_fails_is_reported_with_its_sentence(seen: Seen) -> None:
    assert "  trainer.micro_batch=5 does not divide" in seen.waited[1]


def test_runs_whose_jobs_were_killed_or_refused_say_so_and_wait_no_more(seen: Seen) -> None:
    killed, refused = state_of(seen.wrong["killed"]), state_of(seen.wrong["refused"])

    assert (killed.name, refused.name) == ("failed", "failed")
    assert "has left the queue (FAILED)" in killed.details["error"]
    assert refused.details["error"].startswith("trainer.micro_batch=5 does not divide")
    assert not any((run / QUEUED).exists() for run in seen.wrong.values())


def test_a_job_that_has_no_turn_left_is_reported_and_keeps_what_it_saved(seen: Seen) -> None:
    run = seen.wrong["too_long"]

    assert "timed-out too many times" in seen.waited[1]
    assert state_of(run).name == "failed"
    assert checkpoints(run)[-1] == max(losses(run))


def test_a_job_that_meets_its_limit_gets_another_turn(seen: Seen) -> None:
    said = log_of(seen.lived).read_text(encoding="utf-8")

    assert "this job is timed-out" in said  # so submitit takes any signal in a job of less than ten minutes
    assert "(4 remaining timeouts)" in said


def test_jobs_run_a_copy_of_the_code_and_not_what_is_edited_while_they_wait(seen: Seen, place: Place) -> None:
    traceback = seen.logs["refused"].read_text(encoding="utf-8")

    assert f'File "{place.folder}/runs/sweeps/' in traceback
    assert f'File "{ROOT}/alignlab' not in traceback
