"""What is known of the training of jobs before any of them runs: steps, and stages in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignlab.config import RunConfig
from alignlab.sweeps.jobs import planned_stages, steps_computed_once
from tests.unit.sweeps.configs import config_of

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


def test_the_steps_of_a_job_on_local_files_are_known_only_where_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    local = ["method=red", "data=jsonl", f"data.path={tmp_path}", "data.test=train.jsonl"]

    assert steps(config_of(*local, *EPOCHS, "method.fit.epochs=1")) is None
    assert steps(config_of(*local, *EPOCHS, "method.fit.epochs=1", "data.limit=8")) is None
    assert steps(config_of(*local, "method.fit.steps=4", "method.fit.epochs=null")) == 4


RAHF = ("method=rahf", "method.instruct.steps=30", "method.fit.steps=7")


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
