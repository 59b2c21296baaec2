"""A sweep from its command line to its account, with a stand-in for what a job does."""

from __future__ import annotations

import re
import shlex
import socket
from pathlib import Path

import pytest
from omegaconf import DictConfig

from alignlab import planning
from alignlab.__main__ import main
from alignlab.command_line import expand_overrides
from alignlab.config import folder_of, parse
from alignlab.errors import ConfigError, SweepError
from alignlab.models import config as models
from alignlab.sweeps.local import LocalLauncher
from alignlab.tracking.ledger import LOCK, Ledger
from alignlab.tracking.sweeps import SweepLedger
from tests.unit.made_sweeps import number
from tests.unit.sweeps.configs import EXPERIMENTS, Task, config_of, finish, sweep
from tests.unit.sweeps.test_states import end, holder

TABLE = "experiment=clm/toy/table1"


def said_by(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on standard output."""
    return capsys.readouterr().out.splitlines()


def test_every_job_runs_once_and_the_account_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Task()

    sweep(task, "seed=0,1", "tuner=red,lora", f"paths.runs={tmp_path}")

    said = said_by(capsys)
    assert [(run.seed, run.tuner.name) for run in task.started] == [(0, "red"), (0, "lora"), (1, "red"), (1, "lora")]
    assert said[0] == "sweep tuner=red,lora: 4 jobs (4 to run); 240 optimiser steps to make"
    assert said[-1] == "sweep tuner=red,lora: 4 finished, 0 failed, 0 skipped (done before)"
    assert {run.sweep for run in task.started} == {"tuner=red,lora"}


def test_the_plan_says_which_stages_jobs_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("method=dpo", "method.sft_first=true", "method.sft.steps=5", "method.prefer.steps=3")

    sweep(Task(), *words, "method.beta=0.1,0.2", "seed=0,1", f"paths.runs={tmp_path}", "plan=true")

    assert said_by(capsys)[0].endswith(
        "4 jobs (4 to run); at most 22 optimiser steps to make; shared stages: sft 2 times for 4 jobs"
    )


def test_every_job_is_written_down_before_the_first_one_runs(tmp_path: Path) -> None:
    found: list[int] = []

    sweep(lambda _: found.append(len(SweepLedger(tmp_path, "sweep").jobs())), "seed=0,1,2", f"paths.runs={tmp_path}")

    assert found == [3, 3, 3]


def test_a_failing_job_neither_stops_nor_hides_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Task(too_high=1.0)
    rates = ("1e-3", "5", "-1", "7", "1e-4")

    with pytest.raises(
        SweepError, match=r"^3 of 5 jobs failed; the same command runs those that are not done, and no others\.$"
    ):
        sweep(task, f"method.fit.learning_rate={','.join(rates)}", "seed=3", f"paths.runs={tmp_path}")

    said = said_by(capsys)
    account = said[next(place for place, line in enumerate(said) if ": 2 finished, 3 failed, 0 skipped" in line) + 1 :]
    failures = {account[place].removeprefix("failed: "): account[place + 1 : place + 3] for place in range(0, 9, 3)}
    assert [run.method.fit.learning_rate for run in task.started] == [1e-3, 5.0, 7.0, 1e-4]
    assert {words.split()[0]: error.strip() for words, (error, _) in failures.items()} == {
        "method.fit.learning_rate=5": "the loss is nan at 5.0.",
        "method.fit.learning_rate=-1": "method.fit.learning_rate=-1.0 must be above 0.",
        "method.fit.learning_rate=7": "the loss is nan at 7.0.",
    }
    assert failures["method.fit.learning_rate=5 seed=3"][1] == (
        f"  again: python run.py method.fit.learning_rate=5 seed=3 paths.runs={tmp_path}"
    )


def test_the_second_start_runs_only_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("method.fit.learning_rate=1e-3,5", "seed=0,1", f"paths.runs={tmp_path}")
    with pytest.raises(SweepError, match=r"^2 of 4 jobs failed"):
        sweep(Task(too_high=1.0), *words)
    mended, third = Task(), Task()

    sweep(mended, *words)
    lock = folder_of(mended.started[0]) / ".curves.png.lock"  # of a process that could not remove it
    lock.touch()
    sweep(third, *words)

    assert [(run.method.fit.learning_rate, run.seed) for run in mended.started] == [(5.0, 0), (5.0, 1)]
    assert third.started == []
    assert not lock.exists()
    assert said_by(capsys)[-1].endswith(": 0 finished, 0 failed, 4 skipped (done before)")


def test_a_job_that_fails_before_its_run_has_a_ledger_is_written_down_as_failed(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"^2 of 2 jobs failed"):
        sweep(Task(too_high=0.0), "seed=0,1", f"paths.runs={tmp_path}")

    ledger = SweepLedger(tmp_path, "sweep")
    states = [ledger.state(job) for job in ledger.jobs()]
    assert [state.name for state in states] == ["failed", "failed"]
    assert states[0].details["error"] == "the loss is nan at 0.05."


def test_what_was_written_down_for_a_failed_job_does_not_keep_it_from_running_again(tmp_path: Path) -> None:
    words = ("seed=0,1", f"paths.runs={tmp_path}")
    with pytest.raises(SweepError, match=r"^2 of 2 jobs failed"):
        sweep(Task(too_high=0.0), *words)
    again = Task()

    sweep(again, *words)

    assert [run.seed for run in again.started] == [0, 1]


def test_a_job_that_killed_its_process_comes_last(tmp_path: Path) -> None:
    words = ("seed=0,1,2", f"paths.runs={tmp_path}")
    Ledger(folder_of(config_of("seed=0", f"paths.runs={tmp_path}"))).status("running", host=socket.gethostname())
    task = Task()

    sweep(task, *words)

    assert [run.seed for run in task.started] == [1, 2, 0]


def test_a_name_that_stands_for_other_words_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    words = ("seed=0,1", "sweep=mine", f"paths.runs={tmp_path}")
    sweep(Task(), *words, "method.fit.batch=4")

    with pytest.raises(ConfigError, match=r"^sweep=mine exists already, with other overrides: .*method\.fit\.batch=4"):
        sweep(Task(), *words, "method.fit.batch=8")

    assert len(SweepLedger(tmp_path, "mine").jobs()) == 2


@pytest.mark.parametrize("name", ["../up", "a//b", "my runs", "2024"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^sweep=.* must be letters, digits"):
        sweep(Task(), "seed=0,1", f"sweep='{name}'" if " " in name else f"sweep={name}", f"paths.runs={tmp_path}")


def test_refused_jobs_are_told_where_the_others_were_only_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalLauncher, "launch", lambda *_, **__: [])

    with pytest.raises(SweepError, match=r"^1 of 2 jobs failed"):
        sweep(Task(), "method.fit.batch=4,0", f"paths.runs={tmp_path}")

    said = said_by(capsys)
    assert any(line.endswith(": 1 jobs submitted, 1 failed, 0 skipped (done before)") for line in said)
    assert any("method.fit.batch=0 must be at least 1 and at most 1000000." in line for line in said)


def test_a_seed_that_the_table_does_not_name_is_an_extra_one(tmp_path: Path) -> None:
    sweep(Task(), *expand_overrides(["experiment=clm/toy/table1/dpo", "seed=1,7"], EXPERIMENTS), f"paths.runs={tmp_path}")

    ledger = SweepLedger(tmp_path, "clm/toy/table1")

    assert {job.seed: ledger.is_extra(job) for job in ledger.jobs()} == {1: False, 7: True}


def test_force_runs_what_is_done_again(tmp_path: Path) -> None:
    words = ("seed=0,1", f"paths.runs={tmp_path}")
    sweep(Task(), *words)
    again = Task()

    sweep(again, *words, "force=true")

    assert [run.seed for run in again.started] == [0, 1]


def test_a_job_that_is_done_without_a_number_that_was_asked_for_fails_the_sweep_each_time_and_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("seed=0,1", f"paths.runs={tmp_path}")
    sweep(Task(), *words)
    lacking = {"suite": "toy", "metric": "reward", "control": "dial", "strength": 1.0, "n": 0, "note": "no text ended"}
    Ledger(folder_of(config_of("seed=1", f"paths.runs={tmp_path}"))).write("report.json", {"unmeasured": [lacking]})
    capsys.readouterr()
    task = Task()

    with pytest.raises(SweepError, match=r"^1 of 2 jobs failed"):
        sweep(task, *words)

    said = said_by(capsys)
    assert task.started == []
    assert "0 finished, 1 failed, 1 skipped (done before)" in "".join(said)
    assert any("toy/reward could not be measured at dial 1 (no text ended)" in line for line in said)


def test_a_plan_lists_every_job_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    sweep(Task(), "seed=0", "method.fit.batch=16", f"paths.runs={runs}")
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    task = Task()

    with pytest.raises(SweepError, match=r"^2 of 4 jobs of this sweep are refused; the first: method\.fit\.batch=0 must be"):
        sweep(task, "seed=0,1", "method.fit.batch=16,0", f"paths.runs={runs}", "plan=true")

    said = said_by(capsys)
    assert task.started == []
    assert sorted(tmp_path.rglob("*")) == before
    assert "4 jobs (1 done, 2 refused, 1 to run); 60 optimiser steps to make" in said[0]
    assert any("method.fit.batch=0 must be at least 1" in line for line in said)


def test_a_value_that_is_named_twice_is_one_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Task()

    sweep(task, "seed=0,0", f"paths.runs={tmp_path}")

    assert [run.seed for run in task.started] == [0]
    assert "1 jobs (1 to run)" in said_by(capsys)[0]


def test_a_seed_that_no_generator_takes_is_refused_in_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SweepError, match="1 of 2 jobs of this sweep are refused; the first: seed=4294967296 must be"):
        sweep(Task(), f"seed={2**32},{2**32 - 1}", f"paths.runs={tmp_path}", "plan=true")

    assert "2 jobs (1 refused, 1 to run)" in said_by(capsys)[0]


@pytest.mark.parametrize("plan", ["plan=true", "plan=false"])
def test_a_sweep_without_jobs_is_an_error(tmp_path: Path, plan: str) -> None:
    task = Task()

    with pytest.raises(ConfigError, match=r"^this sweep has no jobs: one of its keys has no value; check glob"):
        sweep(task, TABLE, "+experiment/clm/table1=glob(nothing*)", f"paths.runs={tmp_path}", plan)

    assert task.started == list(tmp_path.iterdir()) == []


def test_seeds_and_rows_on_the_command_line_narrow_a_table_and_add_to_the_same_sweep(tmp_path: Path) -> None:
    """One row at two seeds, another at one, all rows at a seed of the table, and then the whole table."""
    narrowed = Task()
    for words in (
        ["experiment=clm/toy/table1/dpo", "seed=7,8"],
        ["experiment=clm/toy/table1/clm", "seed=7"],
        [TABLE, "seed=1"],
    ):
        sweep(narrowed, *expand_overrides(words, EXPERIMENTS), f"paths.runs={tmp_path}")
    whole = Task()
    sweep(whole, TABLE, f"paths.runs={tmp_path}")

    ledger = SweepLedger(tmp_path, "clm/toy/table1")
    jobs = {(job.row, job.seed): job for job in ledger.jobs()}
    rows = ("clm", "dera", "dpo")
    assert len(narrowed.started) == 6
    assert len(whole.started) == 6  # three rows at three seeds, without those at seed 1
    assert list(tmp_path.glob("sweeps/**/sweep.json")) == [ledger.folder / "sweep.json"]
    assert jobs.keys() == {("dpo", 7), ("dpo", 8), ("clm", 7)} | {(row, seed) for row in rows for seed in (0, 1, 2)}
    assert len(ledger.jobs()) == 12
    assert all(job.overrides == (f"+experiment/clm/table1={row}", f"seed={seed}") for (row, seed), job in jobs.items())
    assert ledger.overrides()[0] == TABLE


def test_the_command_that_repeats_a_job_of_a_table_makes_that_one_job_in_the_same_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise ConfigError("no.")

    with pytest.raises(SweepError, match=r"^3 of 3 jobs failed"):
        sweep(refuse, TABLE, "seed=4", "trainer.threads=1", f"paths.runs={tmp_path}")
    commands = [line.partition("again: ")[2].split() for line in said_by(capsys) if "again: " in line]
    folders = {job.row: tmp_path / job.folder for job in SweepLedger(tmp_path, "clm/toy/table1+trainer.threads=1").jobs()}
    repeated = Task()
    sweep(repeated, *expand_overrides(commands[2][2:], EXPERIMENTS))

    assert commands[2][:4] == ["python", "run.py", "+experiment/clm/table1=dpo", "seed=4"]
    assert "experiment=clm/toy/table1" in commands[2]
    assert len(commands) == 3
    assert [folder_of(run) for run in repeated.started] == [folders["dpo"]]


def test_values_with_blanks_and_brackets_survive_the_command_that_repeats_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("control.strengths=[0.0, 1.0]", "tracking.project='my runs'", "method.fit.learning_rate=5,6")

    with pytest.raises(SweepError, match=r"^2 of 2 jobs failed"):
        sweep(Task(too_high=1.0), *words, f"paths.runs={tmp_path}")

    again = next(line.partition("again: ")[2] for line in said_by(capsys) if "again: " in line)
    config = config_of(*shlex.split(again)[2:])
    assert (config.control.strengths, config.tracking.project) == ([0.0, 1.0], "my runs")
    assert config.method.fit.learning_rate == 5.0


def test_what_another_process_is_at_is_left_for_the_end(tmp_path: Path) -> None:
    runs = f"paths.runs={tmp_path}"
    other = holder(folder_of(config_of("seed=0", runs)) / LOCK)
    task = Task()
    try:
        sweep(task, "seed=0,1,2", runs)
    finally:
        end(other)

    assert [run.seed for run in task.started] == [1, 2, 0]


def test_a_name_of_ones_own_is_the_sweeps_name(tmp_path: Path) -> None:
    task = Task()

    sweep(task, "seed=0,1", "sweep=mine", f"paths.runs={tmp_path}")

    assert len(SweepLedger(tmp_path, "mine").jobs()) == 2
    assert {run.sweep for run in task.started} == {"mine"}


@pytest.mark.parametrize("plan", ["plan=true", "plan=false"])
def test_a_sweep_of_which_every_job_is_refused_ends_with_one_sentence_and_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: str
) -> None:
    task = Task()

    with pytest.raises(SweepError, match=r"^every job .* nothing was begun; the first: method\.fit\.batch=0 must be"):
        sweep(task, "seed=0,1", "method.fit.batch=0,-1", f"paths.runs={tmp_path / 'runs'}", plan)

    assert sum("must be at least 1" in line for line in said_by(capsys)) == 4  # each with its reason
    assert task.started == []
    assert not (tmp_path / "runs").exists()


def test_a_plan_refuses_the_jobs_whose_data_a_run_would_refuse_and_looks_once_at_jobs_of_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int | None] = []
    make_plan = planning.make_plan
    monkeypatch.setattr(planning, "make_plan", lambda config: looked.append(config.data.max_tokens) or make_plan(config))
    words = (
        "data.pairs=8",
        "method.fit.batch=8",
        "data.test_pairs=4",
        "data.max_tokens=5,200",
        "method.fit.learning_rate=1e-3,1e-4",
        "seed=0,1",
    )

    with pytest.raises(SweepError, match=r"^4 of 8 jobs of this sweep are refused; the first: toy/train/0/0: 67 tokens, but"):
        sweep(Task(), "method=sft", *words, "evaluation=off", f"paths.runs={tmp_path / 'runs'}", "plan=true")

    said = said_by(capsys)
    assert "8 jobs (4 refused, 4 to run)" in said[0]
    assert looked == [5, 200]
    assert not (tmp_path / "runs").exists()


def test_a_plan_does_not_look_at_what_it_would_have_to_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "make_plan", lambda _: pytest.fail("it has looked"))
    monkeypatch.setattr(models, "hub_commit", lambda _kind, name, _revision: {"meta-llama/Llama-3.1-8B": "c0ffee"}.get(name))
    words = ("method=sft", "model=llama3_8b_instruct,llama31_8b", f"paths.runs={tmp_path / 'runs'}", "plan=true")

    sweep(Task(), *words)
    estimated = capsys.readouterr().out
    sweep(Task(), *words, "model.architecture=null")
    said = capsys.readouterr().out

    assert "2 jobs (2 to run)" in estimated
    assert "of 2 jobs memory is estimated from their model's config, and rows are told when they run: their model" in estimated
    assert "GiB + activations" in estimated
    assert "revision: model=llama31_8b: commit c0ffee, the newest known here; model.revision=COMMIT keeps it\n" in estimated
    assert "revision: model=llama3_8b_instruct: the newest, whose commit is not known here; model.rev" in estimated
    assert "of 2 jobs rows and memory are told when they run: their model" in said
    assert "GiB + activations" not in said


def test_a_sweep_ends_with_its_table_and_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measured(raw: DictConfig) -> None:
        config = parse(raw)
        finish(config)
        Ledger(folder_of(config)).write("report.json", {"headline": None, "results": [number("toy/reward", 0.25)]})

    report = tmp_path / "sweeps" / "red-vs-lora" / "report.html"
    report.parent.mkdir(parents=True)
    report.with_name("report.html.1.part").write_text("of a process that was killed")

    sweep(measured, "tuner=red,lora", "sweep=red-vs-lora", f"paths.runs={tmp_path}")
    said = capsys.readouterr().out

    assert main(["table", "red-vs-lora", "--runs", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert [path.name for path in report.parent.iterdir() if path.name.startswith("report")] == ["report.html"]
    assert "| red  | 1  | 1     | 8 | 0.250" in table.replace("tuner=", "")
    assert said.endswith(f"{table}report: {report}\n")
    assert "<code>python run.py -m tuner=red,lora sweep=red-vs-lora paths.runs=PATH</code>" in report.read_text(
        encoding="utf-8"
    )


def test_a_plan_on_a_cluster_ends_with_the_script_of_each_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("experiment=clm/table1", "model=qwen25_15b,llama31_8b", "launch=slurm", f"paths.runs={tmp_path / 'runs'}")

    sweep(Task(), *words, "plan=true")

    said = capsys.readouterr().out
    arrays = re.findall(r"^an array of (.*)$", said, re.M)
    assert arrays == [
        "3 jobs: 1 GPU, 8 CPU cores for each process, 32 GB of memory, for a model of 1.54 billion parameters; at most 72 GPU"
        " hours in one turn of all, and each has up to 6 turns",
        "3 jobs: 4 GPUs, 8 CPU cores for each process, 128 GB of memory, for a model of 8.03 billion parameters; at most 288"
        " GPU hours in one turn of all, and each has up to 6 turns",
    ]
    assert re.search(r"^evaluation: preference, fluency; left out: .*judge \(needs settings of its own", said, re.M)
    assert said.count("#!/bin/bash") == 2
    assert "#SBATCH --gpus-per-node=4" in said
    assert not (tmp_path / "runs").exists()
