"""CLM's tables: the numbers that its paper gives."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.experiments.sweeps import EXPERIMENTS, cells, run_of, tables

GIVEN = ("model.source=embedded", "model.path=tiny", "data=toy")
"""In place of the folders that a table asks for."""
PAPER = [table for table in tables("clm") if not table.startswith("clm/toy/")]


@pytest.mark.parametrize("table", PAPER)
def test_a_published_table_stands_beside_each_table(table: str) -> None:
    published = pd.read_csv(EXPERIMENTS / table / "published.csv")

    assert published.columns[0] == "row"
    assert published.row.is_unique
    assert published.drop(columns="row").notna().all(axis=None)


@pytest.mark.parametrize(
    ("model", "row", "beta", "rate"),
    [  # appendix 2
        ("llama32_3b", "dpo", 0.005, 1e-6),
        ("llama32_3b", "clm", 0.005, 1e-6),
        ("llama31_8b", "dpo", 0.01, 5e-7),
        ("llama31_8b", "clm", 0.005, 5e-7),
        ("qwen25_15b", "dpo", 0.001, 1e-6),
        ("qwen25_15b", "clm", 0.001, 1e-6),
        ("qwen25_7b", "dpo", 0.01, 5e-7),
        ("qwen25_7b", "clm", 0.005, 5e-7),
        ("qwen25_7b", "dera", 0.01, 5e-7),
    ],
)
def test_the_main_table_trains_with_the_numbers_of_the_papers_appendix(model: str, row: str, beta: float, rate: float) -> None:
    method = run_of("clm/table1", f"+experiment/clm/table1={row}", f"model={model}").method

    assert (method.beta, method.prefer.learning_rate) == (beta, rate)
    assert (method.prefer.batch, method.prefer.epochs, method.prefer.warmup_fraction) == (128, 1, 0.1)
    assert (method.prefer.schedule, method.prefer.max_grad_norm, method.length_norm) == ("cosine", 1.0, "sum")
    assert (method.sft_first, method.sft.learning_rate, method.sft.batch) == (True, 2e-6, 128)


@pytest.mark.parametrize("table", ["clm/table6", "clm/table7"])
def test_the_ablations_train_at_the_rate_and_beta_of_their_captions(table: str) -> None:
    for cell in cells(table):
        method = run_of(table, *cell).method

        assert (method.prefer.learning_rate, method.beta) == (5e-6, 0.01)


def test_the_table_of_beta_pairs_each_beta_with_its_rate() -> None:
    table = "clm/table5"
    betas = ("beta-0.1", "beta-0.001")
    rows = {row: run_of(table, f"+experiment/{table}={row}", "model=llama31_8b").method for row in betas}

    assert (rows["beta-0.1"].beta, rows["beta-0.1"].prefer.learning_rate) == (0.1, 5e-6)
    assert (rows["beta-0.001"].beta, rows["beta-0.001"].prefer.learning_rate) == (0.001, 5e-7)


def test_the_second_epoch_of_the_base_is_table_3() -> None:
    assert [run_of("clm/table3", *cell).method.sft.epochs for cell in cells("clm/table3")] == [1, 2]


def test_the_strengths_of_the_turns_cross_in_table_4() -> None:
    every = [run_of("clm/table4", *cell) for cell in cells("clm/table4")]

    crossed = {(*config.control.strengths, config.evaluation.judge.second_turn_strength) for config in every}
    assert crossed == {(first, second) for first in (0.5, 1, 1.5, 2) for second in (0, 0.3, 0.5, 0.7)}
    assert {config.evaluation.judge.mode for config in every} == {"single"}


@pytest.mark.parametrize("table", ["clm/fig3", "clm/lora_high_lr", "clm/table4", "clm/dera"])
def test_each_published_row_has_a_row_of_ours(table: str) -> None:
    published = pd.read_csv(EXPERIMENTS / table / "published.csv").row

    rows = {path.stem for path in (EXPERIMENTS / table).glob("*.yaml")}
    assert [name for name in published if not any(name.startswith(row) for row in rows)] == []
    assert [row for row in rows if not any(name.startswith(row) for name in published)] == []


def test_a_distilled_mixture_has_the_settings_of_trra_at_each_of_its_strengths(models: Path) -> None:
    aligned = f"method.aligned={models / 'stories260k'}"

    every = [run_of("clm/trra", *cell, *GIVEN, aligned).method for cell in cells("clm/trra")]

    assert sorted(method.teacher_strength for method in every) == [0.5, 1.5, 2, 5, 10]
    assert {(method.fit.steps, method.fit.batch, method.fit.learning_rate) for method in every} == {(200, 16, 2e-5)}
    assert {tuple(method.fits()) for method in every} == {("fit",)}


def test_an_iteration_of_trra_mixes_the_model_of_the_one_before(models: Path, tmp_path: Path) -> None:
    for name, before in (("lambda-2-iter1", "trra-lambda-2"), ("lambda-2-iter2", "trra-lambda-2-iter1")):
        (tmp_path / before).symlink_to(models / "stories260k")
        method = run_of("clm/trra", f"+experiment/clm/trra={name}", "seed=0", *GIVEN, f"paths.models={tmp_path}").method

        assert (Path(method.aligned).name, method.teacher_strength, method.fit.steps) == (before, 2, 200)


def test_a_block_for_short_answers_has_the_settings_of_inra() -> None:
    (first, *_) = every = [run_of("clm/reasoning", *cell, *GIVEN) for cell in cells("clm/reasoning")]

    fit = first.method.fit
    assert (first.tuner.name, fit.epochs, fit.batch, fit.learning_rate, fit.schedule) == ("clm", 3, 128, 2e-5, "cosine")
    assert first.control.strengths[:3] == [-0.33, -0.25, 0]
    assert len(every) == 2
