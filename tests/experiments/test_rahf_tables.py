"""RAHF's tables: the numbers that its paper and its code give."""

from __future__ import annotations

import pandas as pd
import pytest

from alignlab.config import GROUPS
from tests.experiments.sweeps import EXPERIMENTS, cells, run_of

PUBLISHED = sorted(path.parent.name for path in (EXPERIMENTS / "rahf").glob("*/published.csv"))


@pytest.mark.parametrize("table", PUBLISHED)
def test_published_numbers_are_whole(table: str) -> None:
    published = pd.read_csv(EXPERIMENTS / "rahf" / table / "published.csv")

    assert published.columns[0] == "row"
    assert published.row.is_unique


@pytest.mark.parametrize("table", ["open_llm", "alpacaeval", "ablation"])
def test_every_published_row_is_a_row_of_ours_but_ppo(table: str) -> None:
    published = set(pd.read_csv(EXPERIMENTS / "rahf" / table / "published.csv").row)

    ours = {cell[0].partition("=")[2] for cell in cells(f"rahf/{table}")}
    assert published - {"rlhf-ppo"} == ours


@pytest.mark.parametrize(
    ("row", "rate", "batch", "steps", "window", "responses", "depth"),
    [  # section 4 of the specification, official code
        ("rahf-scit", 3e-4, 64, 450, 512, "one", 0.56),
        ("rahf-dual", 9e-6, 8, 2500, 64, "both", 0.625),
        ("lorra", 3e-4, 16, 70, 64, "one", 0.625),
    ],
)
def test_the_last_stage_trains_with_the_numbers_of_the_official_code(
    row: str, rate: float, batch: int, steps: int, window: int, responses: str, depth: float
) -> None:
    method = run_of("rahf/ablation", f"+experiment/rahf/rows={row}").method

    assert (method.fit.learning_rate, method.fit.batch, method.fit.steps) == (rate, batch, steps)
    assert (method.window, method.responses, method.layers.depth) == (window, responses, [0.31, depth])
    assert (method.alpha, method.prompt_tokens, method.fit.schedule, method.fit.weight_decay) == (5.0, 256, "constant", 0.0)


def test_stages_before_the_last_work_on_one_half_of_the_data_and_the_last_on_the_other() -> None:
    config = run_of("rahf/open_llm", "+experiment/rahf/rows=rahf-scit")

    built = GROUPS["method"]["rahf"].build(config.method)
    assert {stage.name: stage.split for stage in built.stages} == {"instruct": "rm", "shift": "ppo", "fit": "ppo"}
    assert (config.data.halves.seed, config.data.halves.test, config.data.halves.max_prompt) == (42, 1000, 256)
    assert run_of("rahf/open_llm", "+experiment/rahf/rows=dpo").data.part == "rm"


def test_tables_of_the_paper_read_the_cleaned_ultrafeedback_and_the_other_one_where_it_is_asked_for() -> None:
    cleaned = run_of("rahf/open_llm", "+experiment/rahf/rows=rahf-scit").data
    other = run_of("rahf/open_llm", "+experiment/rahf/rows=rahf-scit", "data=ultrafeedback").data

    assert (cleaned.hub, cleaned.records) == ("argilla/ultrafeedback-binarized-preferences-cleaned", 60917)
    assert (other.hub, other.records) == ("HuggingFaceH4/ultrafeedback_binarized", 61135)
    assert (other.frame, other.halves, other.max_tokens) == (cleaned.frame, cleaned.halves, cleaned.max_tokens)


@pytest.mark.parametrize(
    ("row", "stages"),
    [
        ("preferred-sft", ["preferred"]),
        ("hir", ["instruct"]),
        ("lorra", ["shift", "fit"]),
        ("lorra-pref", ["preferred", "shift", "fit"]),
        ("rahf-scit", ["instruct", "shift", "fit"]),
        ("rahf-dual", ["dispreferred", "preferred", "shift", "fit"]),
    ],
)
def test_a_row_is_a_list_of_stages(row: str, stages: list[str]) -> None:
    config = run_of("rahf/toy/table", f"+experiment/rahf/rows={row}", "seed=0")

    built = GROUPS["method"][config.method.name].build(config.method)
    assert [stage.name for stage in built.stages] == stages


def test_presets_differ_where_the_card_says() -> None:
    paper = run_of("rahf/losses", "+experiment/rahf/rows=rahf-scit-paper").method
    code = run_of("rahf/losses", "+experiment/rahf/rows=rahf-dual-code").method

    assert (paper.contrast, paper.smoothing, paper.distance, paper.beyond) == ("sum", 0.0, "squared", 0)
    assert (code.contrast, code.smoothing, code.distance, code.beyond) == ("mean", 0.2, "norm", 1)
    assert (code.fit_prefix, code.preferred.loss_on, code.dispreferred.loss_on) == (True, "all", "all")
