"""A row of a table and the embedded world's version of it, in short and written out."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignlab.command_line import expand_overrides
from alignlab.errors import ConfigError
from tests.experiments.sweeps import ROWS, cells, swept, tables
from tests.unit.sweeps.configs import EXPERIMENTS, config_of

WITH_ROWS = [table for table in tables() if any(key.startswith(ROWS) for key in swept(table))]
SWEPT = "hydra: {sweeper: {params: {%s: glob(*)}}}"


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """A home with a table of two rows at both scales, one table at the toy scale only, and one config that is no table."""
    rows = SWEPT % "+experiment/home/table"
    configs = {"table": rows, "toy/table": rows, "toy/small": SWEPT % "seed", "plain": "seed: 1"}
    for name, content in {**configs, "table/a": "", "table/b": ""}.items():
        path = tmp_path / "home" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("table", WITH_ROWS)
def test_every_row_of_every_table_can_be_named(table: str) -> None:
    key = next(key for key in swept(table) if key.startswith(ROWS))

    for word in {word for cell in cells(table) for word in cell if word.startswith(f"{key}=")}:
        short = [f"experiment={table}/{word.partition('=')[2]}", "seed=3"]

        assert expand_overrides(short, EXPERIMENTS) == [f"experiment={table}", word, "seed=3"]


def test_a_row_by_its_short_name_is_the_run_that_the_table_makes_of_it() -> None:
    short = config_of(*expand_overrides(["experiment=clm/toy/table1/dpo", "seed=2"], EXPERIMENTS))
    long = config_of("experiment=clm/toy/table1", "+experiment/clm/table1=dpo", "seed=2")

    assert (short.fingerprint, short.title) == (long.fingerprint, "dpo-full-tiny-toy")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["experiment=home/table", "scale=toy"], ["experiment=home/toy/table"]),
        (["scale=toy", "experiment=home/table"], ["experiment=home/toy/table"]),
        (["experiment=home/toy/table", "scale=toy"], ["experiment=home/toy/table"]),
        (["experiment=home/table/a", "scale=toy"], ["experiment=home/toy/table", "+experiment/home/table=a"]),
        (["experiment=home/toy/table/b"], ["experiment=home/toy/table", "+experiment/home/table=b"]),
        (["experiment=home/table", "scale=paper"], ["experiment=home/table"]),
        (["experiment=home/table", "scale=toy", "scale=paper"], ["experiment=home/table"]),
        (["experiment=home/table", "scale=smoke"], ["experiment=home/table", "scale=smoke"]),
        (
            ["experiment=home/table/a", "scale=toy,smoke"],
            ["experiment=home/toy/table", "+experiment/home/table=a", "scale=smoke"],
        ),
        (["method=red", "scale=smoke"], ["method=red", "scale=smoke"]),
        (["experiment=home/plain", "seed=1"], ["experiment=home/plain", "seed=1"]),
        (["experiment=null", "method=red"], ["experiment=null", "method=red"]),
        (["method=red"], ["method=red"]),
        (["data.columns={prompt: question}", "+a={b: 1}"], ["++data.columns={prompt: question}", "+a={b: 1}"]),
        (["experiment=home/table/a,b"], ["experiment=home/table", "+experiment/home/table=a,b"]),
    ],
)
def test_scales_and_rows_are_written_out(experiments: Path, words: list[str], meant: list[str]) -> None:
    assert expand_overrides(words, experiments) == meant


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment=home/table/c"], "unknown row of experiment=home/table 'c'; known: a, b."),
        (["experiment=home/table/c", "scale=toy"], "unknown row of experiment=home/toy/table 'c'; known: a, b."),
        (["experiment=home/table/a,c"], "unknown row of experiment=home/table 'c'; known: a, b."),
        (
            ["experiment=home/tabel"],
            "unknown experiment 'home/tabel'; did you mean home/table or home/toy/table or home/toy/small?"
            " known: home/table, home/toy/small, home/toy/table.",
        ),
        (
            ["experiment=home/table,home/toy/table"],
            "experiment=home/table,home/toy/table crosses tables, which have rows of their own; start one after the other.",
        ),
        (
            ["experiment=home/small/c"],
            "experiment=home/small has no version at the paper's scale yet; add scale=toy, which is home/toy/small.",
        ),
        (
            ["experiment=home/table", "scale=tiny"],
            "scale='tiny' is not known; choose paper, toy for the embedded world, or smoke for seconds.",
        ),
        (
            ["scale=toy", "method=red"],
            "scale=toy chooses the version of an experiment for the embedded world; add experiment=NAME.",
        ),
        (
            ["scale=toy", "experiment=null"],
            "scale=toy chooses the version of an experiment for the embedded world; add experiment=NAME.",
        ),
        (
            ["experiment=home/small"],
            "experiment=home/small has no version at the paper's scale yet; add scale=toy, which is home/toy/small.",
        ),
        (
            ["experiment=home/tabel", "scale=toy"],
            "unknown experiment with a version for scale=toy 'home/tabel'; did you mean home/table or home/small?"
            " known: home/small, home/table.",
        ),
        (
            ["experiment=house/table", "scale=toy"],
            "unknown experiment with a version for scale=toy 'house/table'; did you mean home/table or home/small?"
            " known: home/small, home/table.",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_what_there_is(experiments: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand_overrides(words, experiments)

    assert str(caught.value) == said
