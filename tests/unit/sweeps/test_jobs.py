"""What is known of a sweep's jobs before any of them runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from alignlab.config import RunConfig, folder_of
from alignlab.memory import TrainingNeed
from alignlab.sweeps.jobs import Looked, PlannedJob, PlannedStage, plan_job, plan_jobs
from alignlab.sweeps.printed import show_plan
from alignlab.tracking.ledger import Ledger, State
from alignlab.tracking.sweeps import Job
from tests.unit.sweeps.configs import composer, config_of, finish


def planned(folder: Path, *jobs: list[str], fixed: tuple[str, ...] = ()) -> list[PlannedJob]:
    """Jobs of a sweep whose runs are below a folder."""
    runs = f"paths.runs={folder}"
    return plan_jobs([[*words, *fixed, runs] for words in jobs], [*fixed, runs], composer())


def test_a_job_of_a_table_is_its_row_its_other_settings_and_its_seed(tmp_path: Path) -> None:
    words = ["+experiment/clm/table5=beta-0.1", "model=llama32_3b", "seed=7"]

    (only,) = planned(tmp_path, words, fixed=("experiment=clm/table5",))

    job = only.job
    assert job is not None
    assert (job.row, job.settings, job.seed, job.overrides) == ("beta-0.1", {"model": "llama32_3b"}, 7, tuple(words))
    assert job.folder == f"{only.folder.parent.name}/seed-7"
    assert only.folder == tmp_path / job.folder
    assert job.fingerprint in job.folder
    assert only.overrides == (*words, "experiment=clm/table5", f"paths.runs={tmp_path}")


def test_a_table_of_models_and_rows_keeps_both_in_its_jobs(tmp_path: Path) -> None:
    """The folder of models is the first; a job must not lose the second."""
    config = config_of("method=red", f"paths.runs={tmp_path}")
    words = ["+experiment/meet/models=stories260k", "+experiment/meet/rows=coh", "+trainer.extra.a=1"]

    job = plan_job(config, words).job

    assert job is not None
    assert (job.row, job.settings) == ("stories260k", {"experiment/meet/rows": "coh", "trainer.extra.a": "1"})


def test_a_job_that_is_refused_has_its_sentence_and_leaves_the_others_alone(tmp_path: Path) -> None:
    jobs = planned(tmp_path, *([f"method.fit.batch={value}"] for value in ("4", "0", "'${oops'", "x", "8")))

    assert [bool(each.job.refused) for each in jobs] == [False, True, True, True, False]
    assert [each.pending for each in jobs] == [True, False, False, False, True]
    assert jobs[1].job.refused == "method.fit.batch=0 must be at least 1 and at most 1000000."
    assert "oops" in jobs[2].job.refused
    assert jobs[3].job.refused.startswith("method.fit.batch='x' must be a whole number")
    assert all(len(each.job.refused.splitlines()) == 1 for each in jobs[1:4])
    assert jobs[1].job.overrides == ("method.fit.batch=0",)
    assert jobs[0].job.refused == jobs[4].job.refused == ""
    assert [each.job.steps for each in jobs] == [60, None, None, None, 60]


def test_a_refused_seed_is_a_job_beside_the_others(tmp_path: Path) -> None:
    jobs = planned(tmp_path, *([f"seed={seed}"] for seed in ("0", "-1")))

    assert [bool(each.job.refused) for each in jobs] == [False, True]
    assert len({each.job.cell for each in jobs}) == 2


def test_a_key_that_its_config_cannot_have_refuses_its_own_job_only(tmp_path: Path) -> None:
    jobs = planned(tmp_path, ["control.strengths.x=1"], ["seed=3"])

    assert jobs[0].job.refused.startswith("a key on the command line does not fit the configs: ")
    assert jobs[1].job.refused == ""


def test_a_missing_config_or_key_refuses_its_own_job_only(tmp_path: Path) -> None:
    jobs = planned(tmp_path, ["method=rde"], ["method.fit.bach=3"], ["method=dpo", "data=nothing"], ["method=red"])

    assert [bool(each.job.refused) for each in jobs] == [True, True, True, False]
    assert jobs[0].job.refused.startswith("unknown method 'rde'; did you mean red?")
    assert jobs[1].job.refused.startswith("unknown key method.fit.bach; did you mean batch?")
    assert jobs[2].job.refused.startswith("unknown data 'nothing'; ")


def test_the_folder_of_another_run_refuses_a_job(tmp_path: Path) -> None:
    finish(config_of("seed=1", f"folder={tmp_path}/run"))

    first, second = planned(tmp_path, *([f"seed={seed}", f"folder={tmp_path}/run"] for seed in (1, 2)))

    assert first.state.name == "done"
    assert not second.pending
    assert "was made by another config" in second.job.refused


def test_what_is_done_is_not_pending_and_all_else_is(tmp_path: Path) -> None:
    configs = {seed: config_of(f"seed={seed}", f"paths.runs={tmp_path}") for seed in range(5)}
    finish(configs[0])
    for seed, state in ((1, "failed"), (2, "preempted"), (3, "running")):
        _begin(configs[seed], state)

    jobs = planned(tmp_path, *([f"seed={seed}"] for seed in range(5)))

    assert [each.state.name for each in jobs] == ["done", "failed", "preempted", "killed", "missing"]
    assert [each.pending for each in jobs] == [False, True, True, True, True]


def test_force_makes_a_done_job_pending_again(tmp_path: Path) -> None:
    finish(config_of("seed=0", f"paths.runs={tmp_path}"))

    (forced,) = planned(tmp_path, ["seed=0", "force=true"])
    (done,) = planned(tmp_path, ["seed=0"])

    assert (forced.state.name, forced.pending) == ("missing", True)
    assert (done.state.name, done.pending) == ("done", False)


def _begin(config: RunConfig, state: str) -> None:
    ledger = Ledger(folder_of(config))
    ledger.write("config.json", {"fingerprint": config.fingerprint, "seed": config.seed})
    ledger.status(state)


@pytest.mark.parametrize("width", [60, 160])
def test_no_word_and_no_number_of_a_plan_is_broken(width: int) -> None:
    words = ("+experiment/real/rows=dpo-lora", "++method.prefer.beta=0.1", "seed=0")
    folder = "dpo-lora-local-hh_rlhf-cd9d288e-with-a-long-name/seed-0"
    stages = (PlannedStage("sft", 1_200, "", 1e-5), PlannedStage("prefer", 92, "", 2e-4))
    need = TrainingNeed(4_884_480, 8, 384, 4_800_000_000, 0, 0, 0)
    looked = Looked("735 of 800", {"sft": 1_200, "prefer": 92}, need, {}, evaluated=False)
    job = Job(words, "dpo-lora", {}, 0, "cd9d288e", folder, 92)
    console = Console(record=True, width=width)

    planned_job = PlannedJob(words, job, State("missing", {}), stages=stages, looked=looked, need=need)
    show_plan("t", [planned_job], console, whole=True)

    said = console.export_text()
    for whole in ("rows=dpo-lora", "method.prefer.beta=0.1", "735 of 800", "4,884,480", "4.47 GiB", "0.0002", folder):
        assert f" {whole} " in f" {said.replace(chr(10), ' ')} "
    assert "experiment" not in said
    assert console.width == width
