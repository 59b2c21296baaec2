"""Sweeps as people start them: what fails stops nothing, what is done is done once, whoever else is at it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from alignlab.config import STORE, folder_of, parse
from alignlab.files import alone
from alignlab.tracking.ledger import LOCK, state_of
from alignlab.tracking.sweeps import every_sweep

ROOT = Path(__file__).parents[2]
SMALL = (
    *(
        "method=sft",
        "tuner.alpha=1e6",
        "method.fit.steps=2",
        "method.fit.epochs=null",
        "method.fit.batch=8",
        "data.pairs=24",
        "data.test_pairs=8",
    ),
    *("method.fit.schedule=constant", "method.fit.warmup_fraction=0.0", "evaluation=off", "tracking=off", "trainer.threads=1"),
)
DIVERGED, REFUSED, GOOD = (f"method.fit.learning_rate={rate}" for rate in ("1000000000000000.0", "-1", "0.001"))
RATES = "method.fit.learning_rate=1000000000000000.0,-1,0.001"
"""A loss that is not a number, a rate that is refused, and a good one."""
PATIENCE_SECONDS = 240


@dataclass(frozen=True)
class Ended:
    """A process that has ended, and when each file of its folder was last changed then."""

    code: int
    out: str
    err: str
    times: dict[str, int]

    @property
    def ran(self) -> list[str]:
        """The folders of the jobs that were really computed, in order; a finished run does not say its plan."""
        return re.findall(r"^folder +(\S+)", self.out, re.MULTILINE)

    def failure(self, words: str) -> tuple[str, str]:
        """Of a job that failed: its error, and the command that repeats it."""
        lines = self.out.splitlines()
        place = lines.index(f"failed: {words}")
        return lines[place + 1].strip(), lines[place + 2].partition("again: ")[2]


def start(runs: Path, *words: str) -> subprocess.Popen[str]:
    """`python run.py WORDS`, its output in files beside the runs."""
    command = [sys.executable, str(ROOT / "run.py"), *words]
    runs.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(runs: Path, process: subprocess.Popen[str]) -> Ended:
    """Waits for it."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return Ended(process.returncode, out, err, times(runs))


def times(folder: Path) -> dict[str, int]:
    """When each file below was last changed."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@cache
def folder(runs: Path, *words: str) -> Path:
    """The folder of one job."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return folder_of(parse(compose("run", [*SMALL, *words, f"paths.runs={runs}"])))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs that the sweeps below share."""
    return tmp_path_factory.mktemp("sweeps") / "runs"


@pytest.fixture(scope="module")
def first(runs: Path) -> Ended:
    """A sweep of which one job, the last, is good."""
    return ended(runs, start(runs, "-m", RATES, *SMALL, f"paths.runs={runs}"))


@pytest.fixture(scope="module")
def planned(runs: Path, first: Ended) -> Ended:
    """The plan of the same, after it."""
    words = ("-m", RATES, *SMALL, f"paths.runs={runs}", "plan=true")
    return ended(runs, start(runs, *words))


@pytest.fixture(scope="module")
def second(runs: Path, planned: Ended) -> Ended:
    """The same command again."""
    return ended(runs, start(runs, "-m", RATES, *SMALL, f"paths.runs={runs}"))


def test_a_sweep_with_failures_ends_as_an_error_and_counts_them(first: Ended) -> None:
    assert first.code == 1
    assert first.err.splitlines()[-1] == (
        "error: 2 of 3 jobs failed; the same command runs those that are not done, and no others."
    )
    assert "1 finished, 2 failed, 0 skipped (done before)" in first.out
    assert "Traceback" not in first.err


def test_a_loss_that_is_not_finite_does_not_stop_later_jobs(runs: Path, first: Ended) -> None:
    diverged, good = (folder(runs, word) for word in (DIVERGED, GOOD))

    assert first.ran == [str(diverged), str(good)]
    assert state_of(diverged).name == "failed"
    assert "DivergedError" in state_of(diverged).details["error"]
    assert state_of(good).name == "done"


def test_each_failure_is_told_with_its_own_error(first: Ended) -> None:
    assert re.match(r"stage fit: the loss is nan at step 2; ", first.failure(DIVERGED)[0])
    assert first.failure(REFUSED)[0] == "method.fit.learning_rate=-1.0 must be above 0."


def test_a_plan_says_what_is_done_and_writes_nothing(first: Ended, planned: Ended) -> None:
    lines = planned.out.splitlines()

    assert planned.code == 1
    assert "1 of 3 jobs of this sweep are refused; the first: method.fit.learning_rate=-1.0" in planned.err
    assert "3 jobs (1 to run (failed before), 1 refused, 1 done); 2 optimiser steps to make" in planned.out
    assert [" done " in line for line in lines if line.startswith("method.fit.learning_rate=")] == [False, False, True]
    assert planned.times == first.times


def test_the_second_start_runs_only_what_failed(runs: Path, planned: Ended, second: Ended) -> None:
    assert second.code == 1
    assert "0 finished, 2 failed, 1 skipped (done before)" in second.out
    assert second.ran == [str(folder(runs, DIVERGED))]
    good = str(folder(runs, GOOD).relative_to(runs))
    assert {name: second.times[name] for name in planned.times if name.startswith(good)} == {
        name: changed for name, changed in planned.times.items() if name.startswith(good)
    }


def test_the_command_that_is_told_repeats_that_one_job(runs: Path, second: Ended) -> None:
    error, command = second.failure(DIVERGED)
    python, script, *words = shlex.split(command)

    again = ended(runs, start(runs, *words))

    assert (python, script) == ("python", "run.py")
    assert (again.code, again.err.splitlines()[-1]) == (1, f"error: {error}")
    changed = {name.split("/")[0] for name, when in again.times.items() if second.times.get(name) != when}
    assert changed - {STORE} == {folder(runs, DIVERGED).parent.name}


def test_two_sweeps_of_the_same_jobs_run_each_of_them_once(runs: Path, first: Ended, tmp_path: Path) -> None:
    """The first job is kept from both until they have nothing else to do, so that they come to it together."""
    here = tmp_path / "runs"
    words = ("-m", "seed=0,1", GOOD, *SMALL, f"paths.runs={here}")
    folders = [folder(here, GOOD, f"seed={seed}") for seed in (0, 1)]

    with alone(folders[0] / LOCK, "waits"):
        both = [start(here, *words) for _ in range(2)]
        for process in both:
            _read_until_it_waits_for(folders[0], process)
        assert not (folders[0] / "status.json").exists()
    out = [ended(here, process) for process in both]

    assert [each.code for each in out] == [0, 0]
    assert all("2 finished, 0 failed, 0 skipped" in each.out for each in out)
    assert Counter(out[0].ran + out[1].ran) == dict.fromkeys(map(str, folders), 1)
    assert [state_of(each).name for each in folders] == ["done"] * 2
    for each in folders:
        steps = [json.loads(line)["step"] for line in (each / "metrics.jsonl").read_text().splitlines() if "fit/loss" in line]
        assert steps == [1, 2]
    assert [len(sweep.jobs()) for sweep in every_sweep(here)] == [2]
    assert not [*here.glob("**/*.part")]
    assert _tensors(folders[0]) == _tensors(folder(runs, GOOD))


def _read_until_it_waits_for(folder: Path, process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    job = ""
    for line in process.stderr:
        job = line if line.startswith("job ") else job
        if line.startswith("waits for another process that is at the same run") and str(folder) in job:
            return
    raise AssertionError(f"it ended without waiting, after {job!r}")


def _tensors(run: Path) -> dict[str, list[float]]:
    (file,) = (run / "stages" / "fit" / "result").glob("*.safetensors")
    return {name: tensor.flatten().tolist() for name, tensor in load_file(file).items()}
