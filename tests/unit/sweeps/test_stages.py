"""What is known of the training of jobs before any of them runs: steps, and stages in common."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from alignlab.config import RunConfig
from alignlab.sweeps.jobs import PlannedJob, PlannedStage, planned_stages, steps_computed_once
from alignlab.sweeps.printed import show_plan
from alignlab.tracking.ledger import State
from alignlab.tracking.sweeps import Job
from tests.unit.sweeps.configs import Task, config_of, sweep


def local_pairs(folder: Path, count: int) -> list[str]:
    """Writes so many pairs, of which one is 40 words long; returns the overrides that read them."""
    answers = ["one two three.", *["Yes."] * (count - 2), "word " * 40][:count]
    rows = [json.dumps({"prompt": "Tell a story.", "chosen": answer, "rejected": "No."}) for answer in answers]
    for name, some in (("train", rows), ("test", rows[:1])):
        (folder / f"{name}.jsonl").write_text("\n".join(some), encoding="utf-8")
    return ["data=jsonl", f"data.path={folder}", "data.train=train.jsonl", "data.test=test.jsonl"]


EPOCHS = ["method.fit.steps=null", "method.fit.batch=8"]


def steps(config: RunConfig) -> int | None:
    """Of all stages of a job."""
    stages = planned_stages(config)
    return None if stages is None else sum(stage.steps for stage in stages)


def together(*jobs: tuple[str, ...]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Of jobs that run in one store."""
    return steps_computed_once(planned_stages(config_of(*words)) or () for words in jobs)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["method=red", "method.fit.steps=5"], 5),
        (["method=red", *EPOCHS, "method.fit.epochs=3.0", "data.pairs=100"], 38),  # 300 pairs, 8 at a time
        (["method=red", *EPOCHS, "method.fit.epochs=3.0", "data.pairs=100", "data.limit=20"], 8),
        (["method=red", *EPOCHS, "method.fit.epochs=3.0", "data.pairs=100", "data.limit=500"], 38),
        (["method=red", *EPOCHS, "method.fit.epochs=0.01", "data.pairs=100"], 1),
        # both sides of a pair are examples: 100 of them, 8 at a time, once and then twice
        (
            [
                *("method=meet", "data.pairs=50"),
                *("method.controls.steps=null", "method.controls.epochs=1", "method.controls.batch=8"),
                *("method.joint.steps=null", "method.joint.epochs=2", "method.joint.batch=8"),
            ],
            13 + 25,
        ),
        (["method=evaluate", "tuner=full"], 0),
    ],
)
def test_the_steps_of_a_job_are_counted_before_its_data_is_read(words: list[str], count: int) -> None:
    assert steps(config_of(*words)) == count


def test_the_config_of_a_job_on_local_files_tells_its_steps_only_where_they_are_given(tmp_path: Path) -> None:
    local = ["method=red", *local_pairs(tmp_path, 1)]

    assert steps(config_of(*local, *EPOCHS, "method.fit.epochs=1")) is None
    assert steps(config_of(*local, *EPOCHS, "method.fit.epochs=1", "data.limit=8")) is None
    assert steps(config_of(*local, "method.fit.steps=4", "method.fit.epochs=null")) == 4


RAHF = ("method=rahf", "method.instruct.steps=30", "method.fit.steps=7")


def test_the_steps_of_local_files_are_about_those_of_all_records_and_in_a_plan_those_of_the_rows_that_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["method=sft", *local_pairs(tmp_path, 9), *EPOCHS, "method.fit.epochs=2.0,4.0", "evaluation=off", "tuner=red"]
    tight = ("data.max_tokens=60", "data.too_long=drop", "method.fit.learning_rate=0.01", f"paths.runs={tmp_path / 'runs'}")

    sweep(Task(), *words, *tight, "plan=true")
    planned = capsys.readouterr().out
    sweep(Task(), *words, *tight)
    began = capsys.readouterr().out.splitlines()[0]

    assert "2 jobs (2 to run); 6 optimiser steps to make\n" in planned  # 8 of 9 rows, 8 at a time: 2 and 4
    assert planned.count("8 of 9") == 2
    assert "fit 2 at 0.01" in planned
    assert "fit 4 at 0.01" in planned
    # ceil(2 x 9 / 8) = 3 and ceil(4 x 9 / 8) = 5
    assert began.endswith("2 jobs (2 to run); about 8 optimiser steps to make, if no row is left out")


def test_the_steps_of_data_that_is_not_here_are_left_open() -> None:
    job = Job((), "", {}, 0, "", "", None)
    unknown = PlannedJob((), job, State("missing"), stages=None)
    known = PlannedJob((), job, State("missing"), stages=(PlannedStage("fit", 7, ""),))
    console = Console(record=True, width=40)

    show_plan("a", [unknown, unknown], console, whole=False)
    show_plan("b", [unknown, known], console, whole=False)

    assert console.export_text().splitlines() == [
        "sweep a: 2 jobs (2 to run); optimiser steps are counted when they run, since their data is not here",
        "sweep b: 2 jobs (2 to run); 7 optimiser steps to make, and those of 1 job are counted when they run, since their data"
        " is not here",
    ]


def test_a_stage_in_common_counts_once() -> None:
    assert together(RAHF, (*RAHF, "method.alpha=3.0"), (*RAHF, "method.alpha=4.0")) == (30 + 3 * 7, {"instruct": (1, 3)})


def test_a_stage_in_common_counts_once_for_each_seed() -> None:
    jobs = [(*RAHF, f"method.alpha={alpha}", f"seed={seed}") for alpha in (3.0, 4.0) for seed in (0, 1)]

    assert together(*jobs) == (2 * 30 + 4 * 7, {"instruct": (2, 4)})


def test_a_stage_that_differs_counts_for_each_job() -> None:
    assert together(RAHF, (*RAHF, "method.smoothing=0.1")) == (2 * 30 + 2 * 7, {"instruct": (2, 2)})


def test_a_job_that_has_the_stage_to_itself_is_not_among_those_that_share_it() -> None:
    meet = ("method=meet", "method.controls.steps=30", "method.joint.steps=7")

    assert together(meet, (*meet, "method.stages=[joint]")) == (2 * 37, {"controls": (1, 1)})


def test_force_shares_nothing() -> None:
    forced = (*RAHF, "force=true")

    assert together(forced, (*forced, "method.alpha=3.0")) == (2 * 30 + 2 * 7, {})


def test_a_stage_behind_one_that_differs_is_not_in_common() -> None:
    dual = ("method=rahf", "method.variant=dual")

    _, shared = together(dual, (*dual, "method.dispreferred.steps=9"))

    assert shared == {"dispreferred": (2, 2), "preferred": (2, 2)}
