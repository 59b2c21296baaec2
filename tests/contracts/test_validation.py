"""Runs that are measured while they train, through the same door as `python run.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignlab.config import parse
from alignlab.errors import ConfigError
from alignlab.evaluation import METRICS, SUITES
from alignlab.planning import make_plan
from run import run
from tests.contracts.test_methods import composed, history

WATCHED = ("trainer=validated", "trainer.validation.every_steps=1", "trainer.validation.share=0.25")


def best(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "stages" / stage / "best.json").read_text())
    return found


def test_a_run_ends_each_stage_with_its_best_and_draws_the_curve(tmp_path: Path) -> None:
    run(composed(tmp_path, "dpo", *WATCHED, steps=3))

    lines = history(tmp_path)
    values = {line["step"]: line["prefer/validation/accuracy"] for line in lines if "prefer/validation/accuracy" in line}
    found = best(tmp_path, "prefer")
    assert sorted(values) == [1, 2, 3]
    assert found["metric"] == "preference/accuracy"
    assert found["value"] == max(values.values())
    assert found["step"] == min(step for step, value in values.items() if value == found["value"])
    reported = json.loads((tmp_path / "run" / "report.json").read_text())
    assert reported["results"]
    for row in reported["results"]:
        assert row["metric"] in METRICS[row["suite"]]


def test_what_is_measured_is_neither_trained_on_nor_reported() -> None:
    plan = make_plan(parse(composed(Path("nowhere"), "dpo", *WATCHED)))

    rows = {name: {record.row for record in plan.source.split(name).records} for name in ("train", "validation", "test")}
    assert plan.validated is not None
    measured = {record.row for record in plan.validated.source.split("test").records}
    assert (len(rows["train"]), len(rows["validation"])) == (18, 6)
    assert measured == rows["validation"]
    assert {group.row for group in plan.works[0].groups} == rows["train"]
    assert not rows["validation"] & (rows["train"] | rows["test"])
    assert set(plan.validated.source.prompts()) == {record.prompt for record in plan.source.split("validation").records}


@pytest.mark.parametrize(("suite", "metric"), [("toy", "reward"), ("fluency", "perplexity")])
def test_suites_that_sample_are_measured_anew_each_time(suite: str, metric: str, tmp_path: Path) -> None:
    watched = (*WATCHED, f"trainer.validation={{suite: {suite}, metric: {metric}, rows: 4}}", "method.fit.learning_rate=0.5")

    run(composed(tmp_path, "sft", *watched, "evaluation=off", "evaluation.max_new_tokens=8", steps=3))

    values = [line[f"fit/validation/{metric}"] for line in history(tmp_path) if f"fit/validation/{metric}" in line]
    assert len(values) == 3
    assert len(set(values)) > 1


def test_classes_are_measured_while_controls_are_learned(tmp_path: Path) -> None:
    watched = (*WATCHED, "trainer.validation={suite: classes, metric: class_accuracy}")

    run(composed(tmp_path, "meet", *watched, "evaluation=off"))

    assert {best(tmp_path, stage)["metric"] for stage in ("controls", "joint")} == {"classes/class_accuracy"}
    kinds = {key.rpartition("/")[2] for line in history(tmp_path) for key in line if "/validation/" in key}
    assert "class_accuracy" in kinds
    assert kinds <= set(METRICS["classes"])


def test_a_run_that_finds_its_stage_in_the_store_has_its_curve_too(tmp_path: Path) -> None:
    run(composed(tmp_path, "red", *WATCHED, "evaluation=off"))

    run(composed(tmp_path, "red", *WATCHED, "evaluation=off", f"folder={tmp_path}/again", "control=trained"))

    again = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    values = [
        [line["fit/validation/accuracy"] for line in part if "fit/validation/accuracy" in line]
        for part in (history(tmp_path), again)
    ]
    assert values[0] == values[1] != []
    assert (tmp_path / "again" / "stages" / "fit" / "best.json").is_file()


def test_every_suite_says_what_it_measures() -> None:
    assert METRICS.keys() == SUITES.keys()
    assert all(METRICS.values())


@pytest.mark.parametrize(
    ("method", "words", "said"),
    [
        ("dpo", "trainer.validation.suite=classes", "trainer.validation.suite=classes needs classes, which this run does not"),
        ("dpo", "trainer.validation.suite=preferences", "unknown evaluation suite 'preferences'; did you mean preference?"),
        (
            "dpo",
            "trainer.validation.metric=acuracy",
            "unknown trainer.validation.metric of suite preference 'acuracy'; did",
        ),
        ("dpo", "trainer.validation.share=null", "data=toy has no split 'validation'; give trainer.validation.share"),
        ("dpo", "trainer.validation.stages=[prefers]", "unknown stage in trainer.validation.stages 'prefers'; did you mean"),
        ("dpo", "trainer.validation.stages=[]", "method=dpo has no stage that trainer.validation could watch; set it to null."),
        ("dpo", "+trainer.extra.fsdp=true", "trainer.validation measures the whole model, and trainer.extra.fsdp spreads it"),
        ("dpo", "trainer.validation.split=test", "trainer.validation.split='test' is trained on or reported; name another"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_plan(method: str, words: str, said: str) -> None:
    with pytest.raises(ConfigError) as info:
        make_plan(parse(composed(Path("nowhere"), method, *WATCHED, words)))

    assert str(info.value).startswith(said)
