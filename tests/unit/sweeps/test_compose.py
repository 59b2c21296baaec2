"""A config that serves many jobs in turn is, for each of them, the one that Hydra would have composed."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from alignlab.sweeps.jobs import Composer
from tests.experiments.sweeps import cells
from tests.unit.sweeps.configs import choices, composer, load

TABLES = ("clm/toy/table5", "meet/toy/rank", "rahf/toy/map", "clm/table5")
"""Numbers crossed; a group overridden by the table; rows crossed with lists; rows with paired values and with models."""
LINES: dict[str, list[list[str]]] = {
    "lists": [[f"control.strengths={value}"] for value in ("[0.0,1.0]", "[0.5]", "[]", "[0.0,1.0]")],
    "nulls": [[f"method.fit.steps={value}", f"method.fit.epochs={other}"] for value, other in (("3", "null"), ("null", "1.5"))],
    "quoted texts": [[f"tracking.project={value}"] for value in ("'a, b'", '"x=1"', "'null'", "null", "'007'", "7")],
    "dicts, which are merged": [[f"method.fit={value}"] for value in ("{batch:3}", "{steps:2}", "{}", "{steps:4,batch:5}")],
    "an added dict": [[f"+trainer.extra={value}"] for value in ("{a:1}", "{b:{c:2}}")],
    "a dict and a key in it": [[f"method.fit={{batch:{batch}}}", f"method.fit.steps={batch + 1}"] for batch in (2, 4)],
    "an added key": [[], ["+trainer.extra.a=1"], ["+trainer.extra.a=2"], ["++trainer.extra.a=3"], []],
    "a removed key": [["~tracking.mode"], []],
    "groups": [[f"tuner={tuner}", f"method={method}", "seed=3"] for tuner in ("red", "lora") for method in ("red", "dpo")],
    "models, whose sizing follows": [[f"model={model}", "tuner=lora"] for model in ("tiny", "tiny_gpt2", "llama2_7b")],
    "values that point to others": [["method.fit.batch=${seed}", f"seed={seed}"] for seed in (4, 5)]
    + [["method.fit.batch=7", "seed=1"]],
    "values that others are taken from": [
        [f"method={method}", f"{key}={value}"]
        for method, key, values in (
            ("rahf", "method.variant", ("scit", "dual")),
            ("rahf", "method.variants.scit.window", ("5", "6")),
            ("rahf", "data.prefixes.better", ("A", "B")),
            ("dpo", "tuner.preference_rate", ("0.1", "0.2")),
        )
        for value in values
    ],
    "values that none is taken from": [["method=rahf", f"method.alpha={alpha}"] for alpha in ("2.0", "3.0")],
    "values that point to nothing": [[f"seed={seed}", "method.fit.batch=${method.nothing}"] for seed in (1, 2)],
    "a whole part and back": [[f"trainer.extra={value}"] for value in ("null", "5", "null")],
}


@cache
def from_nothing(words: tuple[str, ...]) -> Any:
    """The config of a job as Hydra composes it."""
    return plain(load(list(words)))


def plain(config: DictConfig) -> Any:
    """Every value, or the error of the one that cannot be had."""
    try:
        return OmegaConf.to_container(config, resolve=True)
    except InterpolationKeyError as error:
        return str(error)


@pytest.mark.parametrize("table", TABLES)
def test_every_job_of_a_table_has_the_config_that_hydra_composes(table: str) -> None:
    compose = composer()
    jobs = [[f"experiment={table}", *cell] for cell in cells(table)]

    made = [(words, plain(compose(words))) for words in [*jobs, jobs[0]]]

    for words, config in made[:: max(1, len(made) // 6)]:  # Hydra takes half a second for one
        assert config == from_nothing(tuple(words)), words


@pytest.mark.parametrize("kind", LINES)
def test_every_job_of_a_command_line_has_the_config_that_hydra_composes(kind: str) -> None:
    compose = composer()

    for words in [*LINES[kind], *reversed(LINES[kind])]:
        assert plain(compose(words)) == from_nothing(tuple(words)), words


def test_hydra_composes_once_for_all_jobs_that_differ_in_values_alone() -> None:
    loaded: list[list[str]] = []
    compose = Composer(lambda words: (loaded.append(words), load(words))[1], choices)

    for words in cells("rahf/toy/map"):
        compose(["experiment=rahf/toy/map", *words])

    assert len(cells("rahf/toy/map")) == 32
    assert len(loaded) == 2  # its two rows


def test_a_value_that_hydra_refuses_is_refused_in_its_words_and_for_its_own_job_only() -> None:
    compose = composer()
    good, bad, other = (["seed=1", f"method.fit.batch={value}"] for value in ("2", "'${oops'", "3"))

    before = plain(compose(good))
    with pytest.raises(ConfigCompositionException) as ours:
        compose(bad)
    after, again = plain(compose(other)), plain(compose(good))

    with pytest.raises(ConfigCompositionException) as theirs:
        load(bad)
    assert str(ours.value) == str(theirs.value)
    assert after == plain(load(other))
    assert before == again == plain(load(good))


def test_a_key_that_no_config_has_is_refused_at_its_own_job_only() -> None:
    compose = composer()

    with pytest.raises(ConfigCompositionException, match="bach"):
        compose(["seed=1", "method.fit.bach=2"])

    assert plain(compose(["seed=2"])) == plain(load(["seed=2"]))
