"""The state of a run is what its ledger says, and whether the process that wrote it still lives."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from alignlab.files import alone, beating, code_version, held
from alignlab.tracking.ledger import LOCK, QUEUED, STATES, Ledger, State, mark_of, state_of, wait_for_other_machine

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
    handed = {"job": "17", "time": "2999-01-01T00:00:00+00:00", "status": None}
    ledger.write(QUEUED, handed)

    before = state_of(tmp_path)
    ledger.status("failed", error="oh")

    assert before == State("queued", handed)
    assert state_of(tmp_path).name == "failed"


def test_a_run_that_failed_and_was_handed_over_again_is_queued(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.status("failed", error="oh")

    status = ledger.read("status.json")
    ledger.write(QUEUED, {"job": "18", "time": "1999-01-01T00:00:00+00:00", "status": mark_of(status)})

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


@pytest.mark.parametrize(("code", "label"), [(code_version(), "done"), ("older", "done by another version")])
def test_a_finished_run_says_whether_this_code_made_it(code: str, label: str, tmp_path: Path) -> None:
    Ledger(tmp_path).status("done")
    Ledger(tmp_path).write("report.json", {"results": []})
    Ledger(tmp_path).write("env.json", {"code": code})

    found = state_of(tmp_path)

    assert (found.name, found.label) == ("done", label)


def test_a_run_on_another_machine_is_killed_when_it_has_not_counted_for_a_minute_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the other machine, an hour ahead in the times of its files, is not looked at."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clock = {"now": 1000.0}
    monkeypatch.setattr("alignlab.files.time.time", lambda: clock["now"])
    run = tmp_path / "run"
    Ledger(run).status("running", host="another-machine")
    lock = run / LOCK
    seen = []

    for now, content in ((1000, "a 1"), (1050, "a 2"), (1100, "a 2"), (1109, "a 2"), (1111, "a 2"), (1112, "a 3")):
        clock["now"] = now
        if not lock.is_file() or lock.read_text() != content:
            lock.write_text(content)
        os.utime(lock, (9999, 9999))
        seen.append(state_of(run).name)

    assert seen == ["running", "running", "running", "running", "killed", "running"]


def test_a_living_process_counts_and_another_machine_waits_until_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignlab.files.BEAT_SECONDS", 0.02)
    lock = tmp_path / LOCK
    lock.touch()
    Ledger(tmp_path).status("running", host="another-machine")
    order = []

    def takes_over() -> None:
        wait_for_other_machine(tmp_path)
        order.append("taken over")

    with beating(lock):
        other = Thread(target=takes_over)
        other.start()
        other.join(0.3)
        order.append("ends")
    other.join(5)

    assert order == ["ends", "taken over"]


@pytest.mark.parametrize("name", ["status.json", "report.json"])
@pytest.mark.parametrize("content", [b"{", b"3", b"\xff", b'{"state": "x", "results": 3}', b'{"state": "x", "results": [{}]}'])
def test_a_damaged_file_is_a_state_that_names_it(name: str, content: bytes, tmp_path: Path) -> None:
    Ledger(tmp_path).status("done")
    Ledger(tmp_path).write("report.json", {"results": []})
    (tmp_path / name).write_bytes(content)

    found = state_of(tmp_path)

    assert found.name == "damaged"
    assert f"/{name} " in found.details["error"]


def test_times_of_two_machines_do_not_decide_whether_a_run_is_queued(tmp_path: Path) -> None:
    """The cluster's clock is years behind the machine that submits: what has been written since decides."""
    ledger = Ledger(tmp_path)
    ledger.write(QUEUED, {"job": "1", "time": "2999-01-01T00:00:00+00:00", "status": None})

    waiting = state_of(tmp_path).name
    ledger.status("preempted")

    assert (waiting, state_of(tmp_path).name) == ("queued", "preempted")


def test_a_full_disk_still_has_room_for_the_end_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger(tmp_path).status("running", host="a" * 40)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("alignlab.tracking.ledger.write_whole", full)
    Ledger(tmp_path).status("failed", error="the disk is full")

    assert state_of(tmp_path).name == "failed"
