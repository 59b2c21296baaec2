"""MEET's tables: rows differ in the control only, at equal steps."""

from __future__ import annotations

import pytest

from alignlab.config import GROUPS
from tests.experiments.sweeps import cells, run_of

ITEMS = 4000
"""Single responses of the toy world's training split; half of them are chosen."""


def updates(table: str, *cell: str) -> float:
    """Optimiser steps of all stages of a run together, at the real scale as a share of the items."""
    config = run_of(table, *cell)
    pairs = {"sft": ITEMS / 2, "prefer": ITEMS / 2, "fit": ITEMS / 2, "controls": ITEMS, "joint": ITEMS}
    fits = {name: part for name, part in vars(config.method).items() if hasattr(part, "total_steps")}
    return sum(fit.total_steps(int(pairs[name])) for name, fit in fits.items())


@pytest.mark.parametrize(("table", "steps"), [("meet/toy/table", 120), ("meet/toy/beside", 120), ("meet/toy/attributes", 240)])
def test_all_rows_that_train_have_the_same_number_of_updates_at_the_toy_scale(table: str, steps: int) -> None:
    trained = [cell for cell in cells(table) if "base" not in cell[0]]

    assert {updates(table, *cell) for cell in trained} == {steps}


@pytest.mark.parametrize("table", ["meet/hh", "meet/hh_beside", "meet/summaries", "meet/summaries_beside"])
def test_all_rows_that_train_have_the_same_number_of_updates_at_the_real_scale(table: str) -> None:
    trained = [cell for cell in cells(table) if "base" not in cell[0]]

    assert {round(updates(table, *cell) * 64 / ITEMS) for cell in trained} == {2}


@pytest.mark.parametrize("table", ["meet/toy/table", "meet/hh"])
def test_rows_with_a_control_differ_in_nothing_but_the_control_and_its_stages(table: str) -> None:
    configs = [run_of(table, *cell) for cell in cells(table) if cell[-1] == "seed=0"]

    shared = {str((config.data, config.model, config.evaluation, config.trainer)) for config in configs}
    joint = {str({**vars(config.method.joint), "epochs": None, "steps": None}) for config in configs}
    assert len(shared) == len(joint) == 1


def test_the_two_data_sets_of_the_paper_have_their_own_phrases() -> None:
    dialogues = run_of("meet/hh", "+experiment/meet/rows=coh", "seed=0").control
    summaries = run_of("meet/summaries", "+experiment/meet/rows=coh", "seed=0").control

    assert dialogues.phrase_of("good") == "A good conversation is:"
    assert summaries.phrase_of("bad") == "A bad summary is:"


@pytest.mark.parametrize(
    ("row", "stages", "form"),
    [
        ("coh", ["joint"], "text"),
        ("coh-token", ["joint"], "token"),
        ("coh-prompt-text", ["joint"], "soft_prompt"),
        ("meet-prompt", ["controls", "joint"], "soft_prompt"),
        ("meet-prompt-controls-only", ["controls"], "soft_prompt"),
        ("meet-lora", ["controls", "joint"], "lora"),
    ],
)
def test_a_row_is_a_list_of_stages_and_a_form_of_control(row: str, stages: list[str], form: str) -> None:
    config = run_of("meet/toy/table", f"+experiment/meet/rows={row}", "seed=0")

    built = GROUPS["method"][config.method.name].build(config.method)
    assert [stage.name for stage in built.stages] == stages
    assert config.control.name == form
