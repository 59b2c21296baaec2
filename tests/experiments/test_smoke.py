"""scale=smoke: every run of every method and table is cut the same way, by what the fields of its config declare."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from alignlab.command_line import CONF
from alignlab.config import RunConfig, parse
from alignlab.data.config import DataConfig, ToyConfig
from alignlab.data.mixture import MixtureConfig
from alignlab.methods import METHODS
from alignlab.registry import cut
from alignlab.training.config import FitConfig, TrainerConfig
from tests.experiments.sweeps import cells, composed, tables

MODELS = {"reward": "tiny_roberta", "tpt": "tiny_t5"}
"""The embedded model of a method that does not train the causal one."""
MIXED = ("data=mixture", "+data@data.sources.a=toy", "+data@data.sources.b=toy", "data.tested=a", "tuner.tokens=24")
WORDS = {"evaluate": ("tuner=lora", "control.strengths=[0.0]"), "tpt": MIXED}
"""What a method needs beside its own config."""

FEW = ("clm/toy/table1", "meet/hh", "red/table1", "tpt/paper")
"""Tables that are tried in every run of the tests."""


def is_small(config: RunConfig) -> bool:
    """Rows, steps, prompts and tokens."""
    data = [config.data] if not isinstance(config.data, MixtureConfig) else list(config.data.tasks().values())
    rows = all((each.limit or 999) <= 128 and (each.test_limit or 999) <= 32 for each in data)
    worlds = all(max(each.pairs, each.corpus) <= 128 for each in data if isinstance(each, ToyConfig))
    steps = all(fit.epochs is None and (fit.steps or 999) <= 4 for fit in config.method.fits().values())
    asked = config.evaluation
    return rows and worlds and steps and asked.prompts <= 8 and asked.pairs <= 16 and asked.max_new_tokens <= 16


def words_of(method: str) -> list[str]:
    """A run of a method on the embedded world, at the smallest scale."""
    model = f"model={MODELS.get(method, 'tiny')}"
    return [f"method={method}", model, *WORDS.get(method, ()), "scale=smoke", "tracking=off"]


def smoke(method: str, *words: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose("run", [*words_of(method), *words]))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_every_method_is_small(method: str) -> None:
    assert is_small(smoke(method))


@pytest.mark.parametrize("table", [pytest.param(name, marks=[] if name in FEW else [pytest.mark.slow]) for name in tables()])
def test_a_cell_of_every_table_is_small(table: str) -> None:
    config = parse(composed(table, *cells(table)[0], "scale=smoke"))

    assert is_small(config)


def test_what_is_small_already_stays_and_null_that_means_all_is_cut() -> None:
    fit = {"epochs": 3.0, "steps": None, "batch": 128, "learning_rate": 0.1}

    assert cut(fit, FitConfig) == {"epochs": None, "steps": 4, "batch": 128, "learning_rate": 0.1}
    assert cut({**fit, "epochs": None, "steps": 2}, FitConfig)["steps"] == 2
    assert cut({"limit": None, "test_limit": "500", "max_tokens": None}, DataConfig) == {
        "limit": 128,
        "test_limit": 32,
        "max_tokens": None,
    }


def test_what_stands_inside_is_cut_and_what_excludes_it_goes() -> None:
    validation = {"every_steps": None, "every_epochs": 0.5, "rows": 1000}
    halves = {"test": 1000, "max_prompt": None}

    assert cut({"validation": validation}, TrainerConfig) == {"validation": {"every_steps": 2, "every_epochs": None, "rows": 8}}
    assert cut({"validation": None}, TrainerConfig) == {"validation": None}
    assert cut({"halves": halves}, DataConfig)["halves"] == {"test": 32, "max_prompt": None}
    assert cut({"halves": {"test": None}}, DataConfig)["halves"] == {"test": None}


def test_a_mixture_is_cut_source_by_source() -> None:
    a = {"name": "toy", "pairs": 2000, "limit": None, "test_limit": None}
    given = {"limit": None, "sources": {"a": a, "b": {"name": "toy", "pairs": 9}}}

    small = cut(given, MixtureConfig)

    assert (small["limit"], small["test_limit"]) == (None, None)
    assert small["sources"]["a"] == {"name": "toy", "pairs": 128, "limit": 128, "test_limit": 32}
    assert small["sources"]["b"] == {"name": "toy", "pairs": 9}


def test_the_run_is_the_one_that_its_small_numbers_are() -> None:
    """The word itself is not in the fingerprint: what it sets is."""
    whole, small = smoke("dpo", "scale=null"), smoke("dpo")
    by_hand = smoke(
        "dpo",
        "scale=null",
        *("data.pairs=128", "data.test_pairs=32", "data.corpus=128", "data.limit=128", "data.test_limit=32"),
        *("method.prefer.steps=4", "method.sft.steps=4"),
        *("evaluation.prompts=8", "evaluation.pairs=16", "evaluation.max_new_tokens=16"),
        *("evaluation.lm_eval.limit=4", "evaluation.text.lines=32"),
    )

    assert by_hand.fingerprint == small.fingerprint != whole.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_every_method_takes_less_than_half_a_minute(method: str, tmp_path: Path) -> None:
    from run import run

    begun = time.monotonic()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run(compose("run", [*words_of(method), f"paths.runs={tmp_path}"]))

    assert time.monotonic() - begun < 30
    assert len(list(tmp_path.glob("*/seed-0/report.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("table", [table for table in tables() if "/toy/" in table])
def test_a_table_of_the_embedded_world_can_be_planned_small(table: str) -> None:
    from alignlab.planning import make_plan

    make_plan(parse(composed(table, *cells(table)[0], "scale=smoke", "tracking=off")))
