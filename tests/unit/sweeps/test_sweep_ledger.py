"""What a sweep writes down: every job that it ever had, whoever added it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from alignlab.__main__ import main
from alignlab.errors import RunFolderError
from alignlab.tracking.sweeps import Job, SweepLedger, every_sweep, find_sweep, relative

WRITER = """
import sys
from pathlib import Path
from alignlab.tracking.sweeps import Job, SweepLedger
runs, who = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    words = (f"{who}={number}", "seed=0")
    SweepLedger(runs, "both").declare((), [Job(words, "", {who: str(number)}, 0, "f", f"{who}-{number}", None)])
"""


def job(*words: str, seed: int = 0, fingerprint: str = "f0") -> Job:
    """A job by its words."""
    return Job(words, "", {}, seed, fingerprint, f"run-{fingerprint}/seed-{seed}", 5)


def test_jobs_are_read_as_they_were_written(tmp_path: Path) -> None:
    jobs = [Job(("a=1", "seed=3"), "row", {"a": "1"}, 3, "f", "run/seed-3", None), job("a=2", "seed=3", seed=3)]

    SweepLedger(tmp_path, "home/table").declare(["experiment=home/table"], jobs)

    again = SweepLedger(tmp_path, "home/table")
    assert again.jobs() == jobs
    assert again.overrides() == ("experiment=home/table",)
    assert json.loads((tmp_path / "sweeps" / "home" / "table" / "sweep.json").read_text())["name"] == "home/table"
    assert again.run_folder(jobs[0]) == tmp_path / "run" / "seed-3"


def test_a_sweep_that_was_never_declared_has_no_jobs_and_no_file(tmp_path: Path) -> None:
    ledger = SweepLedger(tmp_path, "home/table")

    assert (ledger.jobs(), ledger.overrides()) == ([], ())
    assert list(tmp_path.iterdir()) == []


def test_later_jobs_are_added_and_keep_the_earlier_ones(tmp_path: Path) -> None:
    ledger = SweepLedger(tmp_path, "table")

    ledger.declare([], [job("row=a"), job("row=b")])
    ledger.declare([], [job("row=c")])
    ledger.declare([], [])

    assert [each.overrides for each in ledger.jobs()] == [("row=a",), ("row=b",), ("row=c",)]


def test_a_job_of_the_same_words_and_seed_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    ledger = SweepLedger(tmp_path, "table")
    first, other = job("row=a", "seed=0"), job("row=b", "seed=0")

    ledger.declare([], [first, other])
    ledger.declare([], [replace(first, fingerprint="f1")])

    assert ledger.jobs() == [replace(first, fingerprint="f1"), other]


def test_the_order_of_words_and_a_seed_that_is_not_said_make_no_second_job(tmp_path: Path) -> None:
    ledger = SweepLedger(tmp_path, "table")

    ledger.declare([], [job("row=a", "beta=1")])
    ledger.declare([], [job("beta=1", "seed=0", "row=a")])

    assert [each.overrides for each in ledger.jobs()] == [("beta=1", "seed=0", "row=a")]


def test_a_refused_job_goes_when_a_job_of_the_same_words_can_run(tmp_path: Path) -> None:
    ledger = SweepLedger(tmp_path, "table")

    ledger.declare([], [replace(job("row=a"), refused="no such key"), replace(job("row=b"), refused="no such key")])
    ledger.declare([], [job("row=a", seed=1)])  # a seed that its config sets

    assert [(each.overrides, each.seed) for each in ledger.jobs()] == [(("row=b",), 0), (("row=a",), 1)]


def test_another_seed_is_another_job_whether_a_word_says_it_or_not(tmp_path: Path) -> None:
    ledger = SweepLedger(tmp_path, "table")

    ledger.declare([], [job("row=a")])
    ledger.declare([], [job("row=a", seed=1), job("row=a", "seed=2", seed=2)])

    assert [each.seed for each in ledger.jobs()] == [0, 1, 2]


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for who in ("ann", "bob")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)

    found = {each.overrides[0] for each in SweepLedger(tmp_path, "both").jobs()}
    assert [writer.returncode for writer in writers] == [0, 0]
    assert found == {f"{who}={number}" for who in ("ann", "bob") for number in range(40)}
    assert not list(tmp_path.glob("**/*.part"))


def test_sweeps_are_found_in_a_folder_of_runs_and_right_below(tmp_path: Path) -> None:
    for runs, name in ((tmp_path, "sweep-1"), (tmp_path / "clm", "clm/toy/table1"), (tmp_path / "clm", "clm/toy")):
        SweepLedger(runs, name).declare([], [job("a=1")])
    SweepLedger(tmp_path / "far" / "below", "hidden").declare([], [job("a=1")])

    found = {(sweep.runs, sweep.name) for sweep in every_sweep(tmp_path)}

    assert found == {(tmp_path, "sweep-1"), (tmp_path / "clm", "clm/toy/table1"), (tmp_path / "clm", "clm/toy")}
    assert find_sweep(tmp_path, "clm/toy/table1").jobs() == [job("a=1")]


def test_a_sweep_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    for name in ("clm/toy/table1", "red/table3"):
        SweepLedger(tmp_path, name).declare([], [])

    with pytest.raises(RunFolderError) as caught:
        find_sweep(tmp_path, "clm/toy/tabel1")

    assert str(caught.value) == (
        "unknown sweep 'clm/toy/tabel1'; did you mean clm/toy/table1? known: clm/toy/table1, red/table3."
        f" Start one below {tmp_path}."
    )


def test_a_name_that_two_folders_have_is_answered_with_both(tmp_path: Path) -> None:
    for runs in ("a", "b"):
        SweepLedger(tmp_path / runs, "table").declare([], [])

    with pytest.raises(RunFolderError) as caught:
        find_sweep(tmp_path, "table")

    assert str(caught.value) == f"table is below {tmp_path / 'a'} and {tmp_path / 'b'}; give one of them: --runs."


def test_a_run_folder_is_told_relative_to_the_runs_wherever_it_is(tmp_path: Path) -> None:
    assert relative(tmp_path / "runs" / "red-1" / "seed-0", tmp_path / "runs") == "red-1/seed-0"
    assert relative(tmp_path / "mine", tmp_path / "runs") == "../mine"


@pytest.mark.parametrize("content", ["{", '{"jobs": [3]}', '{"jobs": [{"unknown": 1}]}'])
def test_a_damaged_file_stops_no_other_sweep_and_is_written_again_by_its_own(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, whole = SweepLedger(tmp_path, "broken"), SweepLedger(tmp_path, "whole")
    for each in (broken, whole):
        each.declare((), [job("a=1")])
    (broken.folder / "sweep.json").write_text(content)

    shown = main(["status", "--runs", str(tmp_path)])
    broken.declare((), [job("a=2")])

    said = capsys.readouterr().out
    assert shown == 0
    assert "broken: damaged (" in said
    assert "whole: 1 jobs (1 missing)" in said
    assert broken.jobs() == [job("a=2")]
    assert (broken.folder / "sweep.json.damaged").read_text() == content
