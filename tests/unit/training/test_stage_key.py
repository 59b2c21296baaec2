"""A stage's key changes with everything that decides its result, and with nothing else."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from alignlab.config import parse
from alignlab.planning import make_plan
from alignlab.running import stage_keys
from alignlab.training.stages import cache_key
from tests.experiments.sweeps import ROOT

SMALL = ("data.pairs=24", "data.test_pairs=8", "data.corpus=24", "tracking=off", "evaluation=off")


@functools.cache
def keys(*words: str) -> dict[str, str]:
    """The key of each stage of a run."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = parse(compose("run", [*SMALL, *words]))
    plan = make_plan(config)
    return dict(zip([stage.name for stage in plan.method.stages], stage_keys(plan), strict=True))


def same(first: dict[str, str], second: dict[str, str]) -> set[str]:
    """The stages whose keys are equal."""
    return {name for name in first if second.get(name) == first[name]}


@pytest.mark.parametrize(
    ("method", "word", "shared"),
    [
        ("rahf", "method.alpha=3.0", {"instruct", "shift"}),
        ("rahf", "method.instruct.learning_rate=0.5", set()),
        ("rahf", "method.sample=4", {"instruct"}),
        ("meet", "method.joint.learning_rate=0.5", {"controls"}),
        ("meet", "method.controls.learning_rate=0.5", set()),
        ("clm", "method.beta=0.25", set()),
        ("dpo", "evaluation.prompts=7", {"prefer"}),
        ("dpo", "control.strengths=[0.0,2.0]", {"prefer"}),
        ("dpo", "data.test_pairs=9", {"prefer"}),
        ("dpo", "trainer.checkpoint_every_steps=7", {"prefer"}),
        ("dpo", "seed=1", set()),
        ("dpo", "data.pairs=25", set()),
        ("dpo", "data.flipped=0.5", set()),
        ("dpo", "model=tiny_gpt2", set()),
        ("dpo", "tuner=ia3", set()),
        ("dpo", "tuner.rank=3", set()),
        ("dpo", "trainer.micro_batch=8", set()),
        ("dpo", "model.template.format='{prompt} '", set()),
    ],
)
def test_what_a_setting_does_to_the_keys(method: str, word: str, shared: set[str]) -> None:
    assert same(keys(f"method={method}"), keys(f"method={method}", word)) == shared


def test_a_fine_tuned_base_is_shared_by_an_objective_that_comes_after_it() -> None:
    base = ("method=clm", "method.sft_first=true")

    assert same(keys(*base), keys(*base, "method.beta=0.25")) == {"sft"}


def test_a_second_model_counts_in_what_reads_it() -> None:
    dual = ("method=rahf", "method.variant=dual")

    shared = same(keys(*dual), keys(*dual, "method.update={rank: 4, alpha: 8.0, dropout: 0.0}"))
    assert shared == set()
    assert same(keys(*dual), keys(*dual, "method.alpha=3.0")) == {"dispreferred", "preferred", "shift"}


def test_what_does_not_say_what_it_is_made_of_is_refused() -> None:
    with pytest.raises(TypeError, match="does not say what decides its result"):
        cache_key(object())


def test_a_partial_is_its_function_and_what_it_was_given() -> None:
    assert cache_key(functools.partial(same, {})) != cache_key(functools.partial(same, {"a": "b"}))


def test_no_key_holds_a_place_in_memory() -> None:
    for method in ("sft", "dpo", "clm", "meet", "coh", "red", "pretrain", "rahf"):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = parse(compose("run", [*SMALL, f"method={method}"]))
        plan = make_plan(config)
        assert " at 0x" not in str([cache_key(stage) for stage in plan.method.stages])


def test_paths_of_the_run_are_in_no_key(tmp_path: Path) -> None:
    assert same(keys("method=sft"), keys("method=sft", f"paths.runs={tmp_path}")) == {"fit"}
