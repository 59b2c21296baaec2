"""Published numbers stand beside ours only where they are of the same row and the same metric, at the same scale."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from math import nan
from pathlib import Path

import pandas as pd
import pytest

from alignlab.errors import DataError
from alignlab.evaluation import METRICS
from alignlab.plots.report import page_of
from alignlab.tables.render import Published, latex, long_csv, markdown, match_published, published_for, sections_of
from alignlab.tables.sweep import Selection, Table, own_interval, read_sweep, table_of
from alignlab.tracking.sweeps import SweepLedger
from tests.unit.made_sweeps import MadeSweep, number

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
REAL = sorted(EXPERIMENTS.glob("*/*/published.csv"))
EVERY = sorted(path for path in EXPERIMENTS.rglob("published.csv") if path.read_text().startswith("row,"))
"""The tables; what a paper only claims in words (tpt) has no columns that a metric could stand for."""
NAMED_BY_ITS_QUESTIONS = {("lm_eval", name) for name in ("acc", "acc_norm", "exact_match", "math_verify", "strict-match")} | {
    ("judge", "mark")
}
"""Last words of metrics whose names begin with a task, or with a category of questions."""
PLAIN = ("params_m", "avg")
"""Columns of RED's tables that say what they are: counts of parameters and means over tasks (and `_sd`, over seeds)."""


def paper(folder: Path, name: str, text: str) -> Path:
    """An `experiments` folder with one published table."""
    path = folder / "experiments" / name / "published.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return folder / "experiments"


def ours(folder: Path, name: str, *jobs: tuple[str, str, tuple[float, ...]]) -> Table:
    """Row, model and strengths of finished jobs, each with reward 0.5."""
    sweep = MadeSweep(folder, name)
    for row, model, strengths in jobs:
        sweep.done(row, 0, [number("toy/reward", 0.5, strength) for strength in strengths], {"model": model})
    return table_of(read_sweep(folder, name), Selection(strengths=None))


def read(name: str, experiments: Path) -> Published:
    found = published_for(name, experiments)
    assert found is not None
    return found


@pytest.mark.parametrize("path", REAL, ids=lambda path: str(path.parent.relative_to(EXPERIMENTS)))
def test_every_published_table_is_read_with_all_its_rows(path: Path) -> None:
    table = read(str(path.parent.relative_to(EXPERIMENTS)), EXPERIMENTS)

    assert table.same_scale
    assert len(table.rows) == len(path.read_text().splitlines()) - 1


@pytest.mark.parametrize("path", EVERY, ids=lambda path: str(path.parent.relative_to(EXPERIMENTS)))
def test_every_published_column_stands_for_a_metric_of_ours_or_says_why_it_cannot(path: Path) -> None:
    table = read(str(path.parent.relative_to(EXPERIMENTS)), EXPERIMENTS)

    assert list(table.stands_for) == list(table.columns)
    for name, meant in table.stands_for.items():
        suite, _, metric = meant.metric.partition("/")
        known = metric in METRICS.get(suite, ()) or (suite, metric.rpartition("/")[2]) in NAMED_BY_ITS_QUESTIONS
        assert known or (not meant.metric and (_sentence(meant.reason) or name in PLAIN or name.endswith("_sd"))), name
        assert not meant.differs or _sentence(meant.differs)


def _sentence(text: str) -> bool:
    return text[:1].isupper() and text.endswith(".")


def test_a_row_is_found_by_its_name_its_model_and_its_strength(tmp_path: Path) -> None:
    table = ours(tmp_path, "clm/table1", ("clm", "llama32_3b", (0.5, 1.0, 3.0)), ("dpo", "qwen25_7b", (1.0, 2.0)))

    found = match_published(table, read("clm/table1", EXPERIMENTS))

    assert found == {
        ("clm model=llama32_3b", "0.5"): "clm-0.5-llama-3.2-3b",
        ("clm model=llama32_3b", "1"): "clm-1.0-llama-3.2-3b",
        ("dpo model=qwen25_7b", "1"): "dpo-qwen2.5-7b",
    }


def test_a_row_file_with_its_model_in_its_name_is_found(tmp_path: Path) -> None:
    experiments = paper(tmp_path, "red/table1", "row,cola\nlora-roberta-base,64.0\nlora-roberta-large,66.0\n")
    table = ours(tmp_path, "red/table1", ("lora-roberta-base", "roberta_base", (1.0,)), ("lora", "roberta_large", (1.0,)))

    assert list(match_published(table, read("red/table1", experiments)).values()) == ["lora-roberta-base", "lora-roberta-large"]


def test_a_sweep_without_rows_is_found_by_its_setting(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "clm/table7")
    for blocks in ("1", "2"):
        sweep.done("", 0, [number("toy/reward", 0.5)], {"tuner.blocks": blocks, "model": "llama32_3b"})

    found = match_published(table_of(read_sweep(tmp_path, "clm/table7"), Selection()), read("clm/table7", EXPERIMENTS))

    assert list(found.values()) == ["blocks-1-llama-3.2-3b", "blocks-2-llama-3.2-3b"]


def test_a_published_row_that_two_of_our_lines_would_share_stands_beside_none(tmp_path: Path) -> None:
    experiments = paper(tmp_path, "x/t", "row,reward\nred,0.25\n")
    sweep = MadeSweep(tmp_path, "x/t")
    for rate in ("0.1", "0.2"):
        sweep.done("red", 0, [number("toy/reward", 0.5)], {"method.rate": rate})

    assert match_published(table_of(read_sweep(tmp_path, "x/t"), Selection()), read("x/t", experiments)) == {}


def test_a_difference_is_formed_where_column_and_metric_have_the_same_name(tmp_path: Path) -> None:
    experiments = paper(tmp_path, "x/t", "row,reward,ae2_lc\nred,0.25,9.1\nlora,,9.2\nfull,0.75,\n")
    table = ours(tmp_path, "x/t", ("red", "tiny", (1.0,)), ("lora", "tiny", (1.0,)), ("ia3", "tiny", (1.0,)))

    cells, printed = sections_of(table, read("x/t", experiments), experiments)

    assert cells.cells["reward, published"].tolist() == ["0.25", "not known", "not known"]
    assert cells.cells["reward - published"].tolist() == ["+0.250 [-0.250, +0.750]", "-", "-"]
    assert printed.cells.values.tolist() == [
        ["red", "red at 1", "0.25", "9.1"],
        ["lora", "lora at 1", "not known", "9.2"],
        ["full", "not run", "0.75", "not known"],
    ]
    assert "No published row was found for: ia3 at 1." in printed.notes


def test_at_the_toy_scale_published_numbers_have_a_block_of_their_own_and_no_difference(tmp_path: Path) -> None:
    experiments = paper(tmp_path, "x/t", "row,reward\nred,0.25\n")
    table = ours(tmp_path, "x/toy/t", ("red", "tiny", (1.0,)))

    cells, printed = sections_of(table, read("x/toy/t", experiments), experiments)

    assert not [name for name in cells.cells.columns if "published" in name]
    assert printed.title == "published (paper's scale, other metric)"
    assert printed.cells.values.tolist() == [["red", "0.25"]]


def test_a_row_that_was_measured_but_not_asked_for_is_not_told_as_not_run(tmp_path: Path) -> None:
    experiments = paper(tmp_path, "x/t", "row,ae2\nred-2.0,9.1\n")
    ours(tmp_path, "x/t", ("red", "tiny", (1.0, 2.0)))
    table = table_of(read_sweep(tmp_path, "x/t"), Selection(strengths=(1.0,)))

    _, printed = sections_of(table, read("x/t", experiments), experiments)

    assert printed.cells["ours"].tolist() == ["red at 2"]


def test_a_table_without_a_file_says_that_its_numbers_are_not_known(tmp_path: Path) -> None:
    experiments = paper(tmp_path, "x/other", "row,reward\nred,0.25\n")
    table = ours(tmp_path, "x/t", ("red", "tiny", (1.0,)))

    assert published_for("x/t", experiments) is None
    assert sections_of(table, None, experiments)[-1].notes == (
        "Published numbers: not known; there is no experiments/x/t/published.csv.",
    )


def test_a_sweep_that_is_no_table_of_a_paper_says_nothing_of_published_numbers(tmp_path: Path) -> None:
    experiments = paper(tmp_path, "x/other", "row,reward\nred,0.25\n")

    for name in ("mine/t", "red-vs-lora"):
        table = ours(tmp_path, name, ("red", "tiny", (1.0,)))
        assert [section.title for section in sections_of(table, None, experiments)] == ["toy"]


def test_a_mean_has_students_interval_over_seeds_and_one_run_its_own(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "x/t")
    for seed, value in enumerate((1.0, 2.0, 3.0)):
        sweep.done("three", seed, [number("toy/reward", value)])
    sweep.done("one", 0, [number("toy/reward", 0.25)])
    for end in ("low", "high"):
        sweep.done(f"without {end}", 0, [number("toy/reward", 0.25) | {end: None}])

    found = {row.row: own_interval(row, "toy/reward") for row in table_of(read_sweep(tmp_path, "x/t"), Selection()).rows}

    # t at 2 degrees of freedom is 4.302653; deviation 1, over root 3
    assert found.pop("three") == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    assert found.pop("one") == (-0.25, 0.75)
    assert found == {
        "without low": pytest.approx((nan, nan), nan_ok=True),
        "without high": pytest.approx((nan, nan), nan_ok=True),
    }


@pytest.mark.parametrize("given", ["whole sweep", "job"])
def test_a_trial_is_marked_and_never_compared_with_published_numbers(given: str, tmp_path: Path) -> None:
    experiments = paper(tmp_path, "x/t", "row,reward\nred,0.25\n")
    ours(tmp_path, "x/t", ("red", "tiny", (1.0,)))
    ledger = SweepLedger(tmp_path, "x/t")
    (job,) = ledger.jobs()
    if given == "job":
        job = replace(job, overrides=(*job.overrides, "scale=smoke"))
    ledger.declare(["scale=smoke"] if given == "whole sweep" else [], [job])
    read_again = read_sweep(tmp_path, "x/t")
    table = table_of(replace(read_again, jobs=read_again.jobs[-1:]), Selection())
    published = published_for("x/t", experiments, trial=table.sweep.trial)

    sections = sections_of(table, published, experiments)

    assert [section.title for section in sections] == ["toy (trial)", "published (paper's scale)"]
    assert not [name for name in sections[0].cells.columns if "published" in name]
    assert sections[0].notes[0].startswith("A trial (scale=smoke), cut to seconds")
    assert sections[1].cells.values.tolist() == [["red", "0.25"]]
    for text in (markdown("x/t", sections), latex("x/t", sections), page_of(table, published, experiments)):
        assert "toy (trial)" in text
        assert "No difference from published numbers is formed." in text
    assert pd.read_csv(StringIO(long_csv(table, published)))[["published", "minus_published"]].isna().all(axis=None)


def test_a_file_that_is_no_published_table_is_refused(tmp_path: Path) -> None:
    experiments = paper(tmp_path, "x/t", "name,reward\nred,0.25\n")

    with pytest.raises(DataError, match="has no column named row"):
        published_for("x/t", experiments)


def test_a_column_that_stands_for_a_metric_of_a_setting_is_compared_with_its_jobs(tmp_path: Path) -> None:
    experiments = paper(tmp_path, "red/glue", "row,params_m,rte,stsb\nred-roberta-base,0.02,78.0,90.4\n")
    columns = "column,metric,setting,times\nparams_m,,,\nrte,classification/accuracy,data.task=rte,100\n"
    (experiments / "red/glue/columns.csv").write_text(columns + "stsb,classification/pearson,data.task=stsb,100\n")
    sweep = MadeSweep(tmp_path, "red/glue")
    for task, metric, value in (("rte", "accuracy", 0.75), ("stsb", "pearson", 0.9)):
        results = [number(f"classification/{metric}", value, 1.0)]
        sweep.done("red", 0, results, {"model": "roberta_base", "data.task": task})
    table, published = table_of(read_sweep(tmp_path, "red/glue"), Selection()), read("red/glue", experiments)

    (section, *_) = sections_of(table, published, experiments)

    assert set(match_published(table, published).values()) == {"red-roberta-base"}
    assert section.cells["accuracy, published"].tolist() == ["78.0", "-"]
    assert section.cells["accuracy - published"].tolist() == ["-3.000 [-53.000, +47.000]", "-"]
    assert section.cells["pearson - published"].tolist() == ["-", "-0.400 [-50.400, +49.600]"]


def test_a_paper_has_one_file_of_columns_whose_settings_all_jobs_may_share(tmp_path: Path) -> None:
    experiments = paper(tmp_path, "x/t", "row,ae2,arena,minutes\nred,50.0,20.0,3\n")
    lines = [
        "table,column,metric,setting,times,differs,reason",
        "t,ae2,judge/win_rate,evaluation.judge.scale=three,100,Another judge.,",
        "t,arena,judge/win_rate,evaluation.judge.scale=five evaluation.prompts=9,100,,",
        "t,minutes,,,1,,It is a time.",
        "other,minutes,toy/reward,,1,,",
    ]
    (experiments / "x/columns.csv").write_text("\n".join(lines) + "\n")
    sweep = MadeSweep(tmp_path, "x/t")
    sweep.done("red", 0, [number("judge/win_rate", 0.25)], {"evaluation.judge.scale": "five", "evaluation.prompts": "9"})
    sweep.done("red", 0, [number("judge/win_rate", 0.5)], {"evaluation.judge.scale": "five", "evaluation.prompts": "8"})

    section, printed = sections_of(table_of(read_sweep(tmp_path, "x/t"), Selection()), read("x/t", experiments), experiments)

    assert section.cells["win_rate, published"].tolist() == ["20.0", "-"]
    assert section.cells["win_rate - published"].tolist() == ["+5.000 [-45.000, +55.000]", "-"]
    assert {"ae2: Another judge.", "minutes: It is a time."} <= set(printed.notes)


def test_a_file_of_columns_without_its_own_is_refused(tmp_path: Path) -> None:
    experiments = paper(tmp_path, "red/glue", "row,rte\nred,78.0\n")
    (experiments / "red/glue/columns.csv").write_text("column,metric\nrte,accuracy\n")

    with pytest.raises(DataError, match=r"columns\.csv must have the columns column, metric, setting and times"):
        published_for("red/glue", experiments)
