"""results.csv: every number of every seed, and where it came from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from alignlab.__main__ import main
from alignlab.tables.sweep import origin, read_sweep, results_csv, without_paths
from tests.unit.made_sweeps import ENVIRONMENT, MadeSweep, number


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    sweep = MadeSweep(folder, "red/toy/t", ["experiment=red/toy/t", "data.path=/home/someone/data"])
    sweep.done("red", 0, [number("toy/reward", 0.25), number("toy/reward", 0.5, 2.0)])
    other = sweep.done("red", 1, [number("toy/reward", 0.75)])
    other.write("env.json", {**ENVIRONMENT, "changed_files": 3, "gpus": ["NVIDIA H100", "NVIDIA H100"]})
    sweep.failed("lora", 0, "no").write("report.json", {"results": [number("toy/reward", 0.125)]})  # of an earlier run
    return folder


def test_every_number_has_its_seed_n_and_interval_and_a_job_without_numbers_its_state(runs: Path, tmp_path: Path) -> None:
    status = main(["table", "red/toy/t", "--runs", str(runs), "--results", str(tmp_path / "results.csv")])

    made = pd.read_csv(tmp_path / "results.csv", comment="#")
    assert status == 0
    assert made[["row", "seed", "fingerprint", "state"]].values.tolist() == [
        ["red", 0, "f0", "done"],
        ["red", 0, "f0", "done"],
        ["red", 1, "f1", "done"],
        ["lora", 0, "f0", "failed"],
    ]
    assert made[["strength", "value", "n", "low", "high"]].iloc[:3].values.tolist() == [
        [1.0, 0.25, 8, -0.25, 0.75],
        [2.0, 0.5, 8, 0.0, 1.0],
        [1.0, 0.75, 8, 0.25, 1.25],
    ]
    assert made["value"].isna().tolist() == [False, False, False, True]
    assert (
        (tmp_path / "results.csv").read_text().startswith("# sweep: red/toy/t\n# command: python run.py experiment=red/toy/t")
    )


def test_every_commit_and_machine_that_made_numbers_is_told(runs: Path) -> None:
    found = origin(read_sweep(runs, "red/toy/t"))

    assert found["commit"] == "c0ffee, clean; c0ffee, 3 files changed since"
    assert found["machine"] == "CPU, Linux x86_64; 2 GPU (NVIDIA H100), Linux x86_64"
    assert found["torch"] == "2.13.0"
    assert found["jobs"] == "2 done, 1 failed"
    assert found["command"] == "python run.py experiment=red/toy/t data.path=PATH"


def test_an_origin_has_every_time_version_and_machine_once(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "t", ["a=1", "b=2"])
    short = {"python": "3.12.1", "commit": "beef", "gpus": ["A", "B"]}
    for seed, (day, environment) in enumerate([(2, ENVIRONMENT), (1, {**ENVIRONMENT, "packages": {}}), (3, short)]):
        run = sweep.done("red", seed, [])
        run.write("env.json", environment)
        run.write("status.json", {"state": "done", "time": f"2026-01-0{day}"})

    found = origin(read_sweep(tmp_path, "t"))

    assert found == {
        "sweep": "t",
        "command": "python run.py a=1 b=2",
        "jobs": "3 done",
        "finished": "2026-01-01 to 2026-01-03",
        "commit": "c0ffee, clean; beef, clean",
        "alignlab": "0.1.0; not known",
        "torch": "2.13.0; not known",
        "transformers": "5.23.0; not known",
        "peft": "0.21.2; not known",
        "python": "3.11.7; 3.12.1",
        "machine": "CPU, Linux x86_64; 2 GPU (A, B), not known",
    }


@pytest.mark.parametrize(
    ("days", "finished"),
    [
        ((1, 1), "2026-01-01"),
        ((3, 1, 1), "2026-01-01 to 2026-01-03"),
        ((3, 1, 3), "2026-01-01 to 2026-01-03"),
        ((), "none yet"),
    ],
)
def test_an_origin_tells_the_first_and_the_last_time_once(days: tuple[int, ...], finished: str, tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "t")
    sweep.job("red", 7)
    for seed, day in enumerate(days):
        run = sweep.done("red", seed, [])
        run.write("status.json", {"state": "done", "time": f"2026-01-0{day}"})
        run.write("env.json", {"system": "Linux"})

    found = origin(read_sweep(tmp_path, "t"))

    nothing = "not known" if days else "none yet"
    assert found["finished"] == finished
    assert [found[key] for key in ("python", "commit", "torch")] == [nothing] * 3


def test_a_setting_that_a_job_does_not_have_is_empty_in_its_line(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "t")
    sweep.done("", 0, [number("toy/reward", 0.5)], {"model": "tiny"})
    sweep.done("", 1, [number("toy/reward", 0.25)], {"model": "tiny", "tuner": "red"})
    sweep.done("", 2, [number("toy/reward", 0.75)], {"model": "big"})

    head, first, second, third = results_csv(read_sweep(tmp_path, "t")).splitlines()[-4:]

    assert head == "row,model,tuner,seed,fingerprint,state,strength,control,suite,metric,value,n,low,high"
    assert first == ",tiny,,0,f0,done,1.0,dial,toy,reward,0.5,8,0.0,1.0"
    assert second.startswith(",tiny,red,1,")
    assert third.startswith(",big,,2,")


def test_whole_numbers_stay_whole_beside_a_job_without_numbers(runs: Path) -> None:
    lines = results_csv(read_sweep(runs, "red/toy/t")).splitlines()

    assert lines[-4] == "red,0,f0,done,1.0,dial,toy,reward,0.25,8,-0.25,0.75"
    assert lines[-1] == "lora,0,f0,failed,,,,,,,,"


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("data.path=/home/me/x seed=0", "data.path=PATH seed=0"),
        ("model.path=~/x", "model.path=PATH"),
        ("model.path=../shared/x", "model.path=PATH"),
        ("paths=[/a/b,/c]", "paths=[PATH,PATH]"),
        ("experiment=red/toy/table1 evaluation.suites=[toy]", "experiment=red/toy/table1 evaluation.suites=[toy]"),
        ("/home/me/run is not empty; toy/reward", "PATH is not empty; toy/reward"),
    ],
)
def test_paths_of_a_machine_are_left_out_and_names_are_kept(words: str, left: str) -> None:
    assert without_paths(words) == left
