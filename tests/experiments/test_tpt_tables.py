"""TPT's tables: what each row trains, a row of each table, and what is said to be published."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from alignlab.commands.params import counted, rows_of
from alignlab.config import folder_of, parse
from alignlab.planning import make_plan
from run import run
from tests.experiments.sweeps import EXPERIMENTS, composed, run_of

COUNTS = {"prompt": 76_800, "bank": 460_800, "joint": 537_600, "frozen": 76_800, "own-bank": 384_000, "router": 922_200}
SHARES = {76_800: "0.0345", 460_800: "0.2067", 537_600: "0.2412"}


def test_the_rows_train_what_the_released_scripts_train() -> None:
    found = {row: counted(config) for row, _, config in rows_of("tpt/params")}

    assert {row: count for row, (count, _) in found.items()} == COUNTS
    assert {whole for _, whole in found.values()} == {222_903_552}
    assert {count: f"{100 * count / 222_903_552:.4f}" for count in SHARES} == SHARES


@pytest.mark.parametrize(
    ("table", "rows", "row", "task", "tested"),
    [
        ("tpt/toy/small", "tpt/toy/small", "token", "snli", 5),  # a fifth of 24 rows
        ("tpt/toy/small", "tpt/toy/small", "full", "snli", 5),
        ("tpt/small", "tpt/toy/small", "whole", "qnli", 5),
        ("tpt/small", "tpt/toy/small", "frozen", "wnli", 24),
        ("tpt/toy/stories", "tpt/toy/stories", "none", "both", 8),
    ],
)
def test_a_row_of_a_study_runs(table: str, rows: str, row: str, task: str, tested: int, tmp_path: Path) -> None:
    raw = composed(table, f"+experiment/{rows}={row}", f"data.tested={task}", "seed=0", "tracking=off")
    short = {f"method.{stage}.steps": 1 for stage in ("bank", "target", "fit") if stage in raw.method}
    stories = {f"data.sources.{told}.test_pairs": 8 for told in ("mood", "length", "both") if told in raw.data.sources}
    starts = {f"tuner.{ids}": [5, 400] for ids in ("bank_ids", "prompt_ids") if ids in raw.tuner}  # the stand-in knows 439
    for key, value in {**short, **stories, **starts, "paths.runs": str(tmp_path), "trainer.device": "cpu"}.items():
        OmegaConf.update(raw, key, value)

    run(raw)

    report = json.loads((folder_of(parse(raw)) / "report.json").read_text())
    (accuracy,) = [found for found in report["results"] if found["metric"] == "accuracy"]
    assert (accuracy["suite"], accuracy["n"]) == ("classification", tested)


def test_the_t5_of_the_small_study_is_pretrained_on_both_texts(tmp_path: Path) -> None:
    raw = composed("tpt/t5", "method.fit.steps=1", "tracking=off", f"paths.runs={tmp_path}", "trainer.device=cpu")
    plan = make_plan(parse(raw))

    run(raw)

    # the same lines three times: one text of 18 words for the first source, three of 5 words for the second
    assert plan.works[0].weights == {"wikipedia": 0.25, "stories": 0.75}
    assert folder_of(parse(raw)).joinpath("report.json").is_file()


def test_at_the_papers_scale_a_task_has_its_own_rate_and_start() -> None:
    cell = ("+experiment/tpt/paper=token", "model=t5_base", "seed=42")

    rte, mnli = (run_of("tpt/paper", *cell, f"data.tested={task}").method for task in ("rte", "mnli"))

    assert (rte.stages, rte.prompt_task, rte.target.learning_rate, rte.target.epochs) == (
        ["prompt", "bank", "target"],
        "mnli",
        0.4,
        30,
    )
    assert (mnli.stages, mnli.target.learning_rate, mnli.target.epochs) == (["bank", "target"], 0.3, 5)


def test_no_number_is_published_but_the_abstracts() -> None:
    published = pd.read_csv(EXPERIMENTS / "tpt" / "published.csv", dtype=str)

    numbers = [value for column in published.columns[1:] for value in published[column] if any(map(str.isdigit, value))]

    assert numbers == ["0.035", "14"]
