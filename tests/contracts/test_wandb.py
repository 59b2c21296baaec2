"""W&B beside real runs: one job is one run, whatever becomes of it, and nothing personal is written."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignlab.config import parse
from run import run
from tests.contracts.test_methods import SMALL, WORLD, composed
from tests.offline_runs import Offline, offline_runs

ROOT = Path(__file__).parents[2]
TRACKED = ("tracking=wandb", "tracking.mode=offline")
SEEDS = (0, 1)
USER, KEY = "somebody-in-particular", "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of a user whose key is in the environment."""
    return tmp_path_factory.mktemp(USER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """Two jobs of one process, side by side in a folder."""
    folder = tmp_path_factory.mktemp("runs")
    words = [word for word in (*SMALL, *WORLD) if word != "tracking=off"]
    words += ["method=red", "method.fit.steps=2", "method.fit.batch=8", "trainer.threads=1", "seed=0,1", *TRACKED]
    environment = {**os.environ, "HOME": str(home), "USER": USER, "LOGNAME": USER, "WANDB_API_KEY": KEY}
    command = [sys.executable, "run.py", "-m", *words, f"paths.runs={folder}"]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True, timeout=180)
    return folder


@pytest.fixture(scope="module")
def jobs(folder: Path) -> list[Offline]:
    """What wandb wrote of the two."""
    return offline_runs(folder)


def report_of(job: Offline) -> dict[str, Any]:
    """The report of the run that wandb's folder lies in."""
    return dict(json.loads((job.folder.parents[1] / "report.json").read_text()))


def test_two_jobs_in_one_process_are_two_runs_that_finished(jobs: list[Offline]) -> None:
    assert len({job.identity["run_id"] for job in jobs}) == len({job.identity["display_name"] for job in jobs}) == 2
    assert [job.exit_codes for job in jobs] == [[0]] * 2


def test_a_runs_id_is_its_fingerprint_and_seed_and_a_token_of_its_folder(jobs: list[Offline]) -> None:
    reports = [report_of(job) for job in jobs]

    named = {job.identity["run_id"].rpartition("-")[0] for job in jobs}
    assert named == {f"{report['fingerprint']}-{report['seed']}" for report in reports}
    assert {job.identity["config"]["update"]["seed"] for job in jobs} == set(SEEDS)


def test_jobs_of_a_sweep_are_a_group_with_their_method_as_job_type(jobs: list[Offline], folder: Path) -> None:
    (sweep,) = (json.loads(file.read_text()) for file in folder.glob("sweeps/**/sweep.json"))

    assert {job.identity["run_group"] for job in jobs} == {sweep["name"]}
    assert {job.identity["job_type"] for job in jobs} == {"red"}


def test_the_last_values_are_those_of_the_report_and_of_the_last_step(jobs: list[Offline]) -> None:
    for job in jobs:
        last = job.last_values
        lines = [json.loads(line) for line in (job.folder.parents[1] / "metrics.jsonl").read_text().splitlines()]
        results = {(row["strength"], row["metric"]): row["value"] for row in report_of(job)["results"] if row["suite"] == "toy"}

        assert last["fit/loss"] == [line["fit/loss"] for line in lines if "fit/loss" in line][-1]
        assert last["evaluation/strength 1/toy/reward"] == results[1.0, "reward"]


def test_results_per_strength_are_a_table_and_the_figures_are_images(jobs: list[Offline]) -> None:
    for job in jobs:
        rows = report_of(job)["results"]
        (table,) = (json.loads(file.read_text()) for file in job.folder.glob("files/media/table/*.json"))

        assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == rows
        assert {file.name.partition("_")[0] for file in job.folder.glob("files/media/images/*")} == {"curves", "dial"}
        assert {name for name, value in job.last_values.items() if value == "image-file"} == {"curves._type", "dial._type"}


def test_no_key_name_host_or_path_of_the_user_is_in_what_would_be_uploaded(
    jobs: list[Offline], folder: Path, home: Path
) -> None:
    personal = (str(home), str(Path.home()), str(ROOT), str(folder), USER, KEY)
    for job in jobs:
        files = [*job.folder.glob("*.wandb"), *(path for path in job.folder.glob("files/**/*") if path.is_file())]

        assert files
        assert not [(file.name, word) for file in files for word in personal if word.encode() in file.read_bytes()]
        assert f'"{socket.gethostname()}"' not in json.dumps(job.records)


def test_a_crashed_run_failed_and_going_on_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise MemoryError("no room")

    raw = composed(tmp_path, "red", *TRACKED, "evaluation=off")
    with monkeypatch.context() as patched:
        patched.setattr("alignlab.running.run_stages", crash)
        with pytest.raises(MemoryError):
            run(raw)
    run(raw)

    parts = offline_runs(tmp_path)
    config = parse(raw)
    first, second = (part.identity["run_id"] for part in parts)
    assert first == second
    assert first.startswith(f"{config.fingerprint}-{config.seed}-")
    assert [part.exit_codes for part in parts] == [[1], [0]]
