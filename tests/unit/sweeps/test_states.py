"""The state of a run is what its ledger says, and whether the process that wrote it still lives."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alignlab.files import alone, held
from alignlab.tracking.ledger import LOCK, QUEUED, STATES, Ledger, State, state_of

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def holder(lock: Path) -> subprocess.Popen[str]:
    """A process that has the lock, as a run has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    """Kills it: nothing is tidied up."""
    process.kill()
    process.communicate()


def test_a_folder_without_a_ledger_is_missing(tmp_path: Path) -> None:
    assert state_of(tmp_path / "nowhere") == State("missing")
    assert state_of(tmp_path) == State("missing")


def test_a_run_that_was_handed_to_a_cluster_is_queued_until_it_starts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    handed = {"job": "17", "time": "2026-01-01T00:00:00+00:00"}
    ledger.write(QUEUED, handed)

    before = state_of(tmp_path)
    ledger.status("failed", error="oh")

    assert before == State("queued", handed)
    assert state_of(tmp_path).name == "failed"


def test_a_run_that_failed_and_was_handed_over_again_is_queued(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.status("failed", error="oh")

    ledger.write(QUEUED, {"job": "18", "time": "2999-01-01T00:00:00+00:00"})

    assert state_of(tmp_path).name == "queued"


@pytest.mark.parametrize("state", ["failed", "preempted", "interrupted"])
def test_a_run_that_ended_is_what_its_ledger_says(tmp_path: Path, state: str) -> None:
    Ledger(tmp_path).status(state, error="why")

    found = state_of(tmp_path)

    assert found.name == state
    assert found.details["error"] == "why"
    assert state in STATES


def test_a_run_is_done_with_its_report_and_missing_without(tmp_path: Path) -> None:
    Ledger(tmp_path).status("done")

    without = state_of(tmp_path).name
    Ledger(tmp_path).write("report.json", {})

    assert (without, state_of(tmp_path).name) == ("missing", "done")


@pytest.mark.parametrize("host", [{}, {"host": socket.gethostname()}])
def test_a_run_is_running_while_its_process_lives_and_killed_after(tmp_path: Path, host: dict[str, str]) -> None:
    Ledger(tmp_path).status("running", **host)
    Ledger(tmp_path).write("progress.json", {"stage": "fit", "step": 3, "steps": 9, "seconds_left": 200.0})

    process = holder(tmp_path / LOCK)
    try:
        living = state_of(tmp_path)
    finally:
        end(process)
    dead = state_of(tmp_path)

    assert (living.name, living.progress) == ("running", "fit 3/9, 3 min left")
    assert (dead.name, dead.progress) == ("killed", "")
    assert (tmp_path / LOCK).is_file()  # what a kill leaves behind


def test_a_run_that_never_had_a_lock_is_killed(tmp_path: Path) -> None:
    Ledger(tmp_path).status("running")

    assert state_of(tmp_path).name == "killed"


def test_a_run_on_another_machine_is_believed(tmp_path: Path) -> None:
    Ledger(tmp_path).status("running", host="another-machine")

    assert state_of(tmp_path).name == "running"


def test_a_finished_run_whose_process_still_lives_is_done(tmp_path: Path) -> None:
    Ledger(tmp_path).status("done")
    Ledger(tmp_path).write("report.json", {})

    process = holder(tmp_path / LOCK)
    try:
        assert state_of(tmp_path).name == "done"
    finally:
        end(process)


@pytest.mark.parametrize(
    ("details", "progress"),
    [
        ({}, ""),
        ({"stage": "fit", "step": 1, "steps": 9}, "fit 1/9"),
        ({"stage": "fit", "step": 1, "steps": 9, "seconds_left": None}, "fit 1/9"),
        ({"stage": "fit", "step": 1, "steps": 9, "seconds_left": 12.4}, "fit 1/9, 12 s left"),
        ({"stage": "fit", "step": 1, "steps": 9, "seconds_left": 3600.0}, "fit 1/9, 60 min left"),
    ],
)
def test_progress_is_told_in_words(details: dict[str, object], progress: str) -> None:
    assert State("running", details).progress == progress
    assert State("failed", details).progress == ""


def test_one_process_at_a_time_has_a_lock_and_a_second_says_that_it_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = tmp_path / "deep" / "lock"
    process = holder(lock)
    assert process.stdin is not None
    taken = held(lock)
    follower = "import sys; from pathlib import Path; from alignlab.files import alone; import logging\n"
    follower += "logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
    follower += f"with alone(Path({json.dumps(str(lock))}), 'waits'):\n    print('mine')"
    second = subprocess.Popen([sys.executable, "-c", follower], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    said = second.stderr.readline()  # comes while the first still has it
    waiting = second.poll() is None
    end(process)
    out, _ = second.communicate(timeout=60)

    assert taken
    assert (said, waiting, out) == ("waits\n", True, "mine\n")
    assert not held(lock)
    with alone(lock, "waits"):
        assert held(lock)
