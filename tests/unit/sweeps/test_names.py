"""The name of a sweep says what makes it this sweep, and goes into folders and to W&B."""

from __future__ import annotations

import re

import pytest

from alignlab.sweeps.jobs import name_of

TABLE = "experiment=clm/toy/table1"
SWEPT = ["+experiment/clm/table1", "seed", "method.beta"]
"""What the table crosses itself."""


def test_a_table_is_called_by_its_own_name() -> None:
    assert name_of([TABLE], SWEPT, []) == "clm/toy/table1"


@pytest.mark.parametrize(
    ("fixed", "words"),
    [
        (["seed=7"], []),
        ([], ["seed=7,8"]),
        (["+experiment/clm/table1=dpo"], []),
        ([], ["method.beta=0.1,0.5"]),
        (["force=true"], []),
        (["tracking=off", "tracking.project=mine"], ["launch=local"]),
        (["paths.runs=/some/where", "sweep=mine"], []),
    ],
)
def test_what_narrows_a_table_or_leaves_its_numbers_alone_does_not_count(fixed: list[str], words: list[str]) -> None:
    assert name_of([TABLE, *fixed], SWEPT, words) == "clm/toy/table1"


@pytest.mark.parametrize(
    ("fixed", "words", "name"),
    [
        ([TABLE, "evaluation=off"], [], "clm/toy/table1+evaluation=off"),
        ([TABLE], ["tuner=red,lora"], "clm/toy/table1+tuner=red,lora"),
        ([TABLE, "+trainer.extra.a=1"], [], "clm/toy/table1++trainer.extra.a=1"),
        (["method=red"], ["tuner=red,lora", "seed=0,1"], "method=red+tuner=red,lora"),
        ([], ["seed=0,1"], "sweep"),
        ([], [], "sweep"),
    ],
)
def test_everything_else_counts_and_can_be_read(fixed: list[str], words: list[str], name: str) -> None:
    assert name_of(fixed, SWEPT if fixed and fixed[0] == TABLE else [], words) == name


@pytest.mark.parametrize(
    "word", ["data.path=/home/me/my data", "data.path=a/b", "method.x='a b'", "model.path=..", "a.b=[1,2]", f"a={'b' * 100}"]
)
def test_no_path_no_blank_and_nothing_long_gets_into_a_name(word: str) -> None:
    of_a_table, alone = name_of([TABLE, word], SWEPT, []), name_of([word], [], [])

    assert re.fullmatch(r"clm/toy/table1\+[\w.=+,-]{1,100}", of_a_table)
    assert re.fullmatch(r"[\w.=+,-]{1,100}", alone)
    assert "/" not in alone
    assert ".." not in alone.split("+")


DIFFERENT = [
    [TABLE],
    ["experiment=clm/toy/table2"],
    [TABLE, "evaluation=off"],
    [TABLE, "data.path=/a"],
    [TABLE, "data.path=/b"],
    [TABLE, "control.strengths=[0,1]"],
    [TABLE, "control.strengths=[0,2]"],
    ["evaluation=off"],
    ["data.path=/a"],
    ["experiment=clm/toy/table1,clm/toy/table2"],
    ["experiment=clm/toy/table1,clm/toy/table5"],
    [],
]


def test_sweeps_that_make_different_numbers_have_different_names() -> None:
    assert len({name_of(words, SWEPT, []) for words in DIFFERENT}) == len(DIFFERENT)


def test_sweeps_over_different_experiments_have_different_names() -> None:
    pairs = ["experiment=a/b,a/c", "experiment=a/b,a/d"]

    assert len({name_of([], [], [pair]) for pair in pairs}) == 2


def test_the_order_of_the_words_makes_no_other_sweep() -> None:
    words = ["evaluation=off", "method.fit.steps=2", "tuner=red,lora"]

    assert name_of([TABLE, *words], SWEPT, []) == name_of([*reversed(words), TABLE], SWEPT, [])
    assert name_of([TABLE, *words[:2]], SWEPT, words[2:]) == name_of([TABLE, *words], SWEPT, [])
