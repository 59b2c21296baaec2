"""A config becomes its dataclass as OmegaConf would make it, whatever was made of similar configs before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from omegaconf import OmegaConf

from alignlab.errors import ConfigError
from alignlab.sheets import typed


@dataclass
class Inner:
    rate: float
    steps: int | None


@dataclass
class Outer:
    name: str
    inner: Inner
    numbers: list[float]
    extra: dict[str, Any]
    other: Inner | None


CONFIGS = [
    {
        "name": "a",
        "inner": {"rate": 2, "steps": 7},
        "numbers": [3, 0.25],
        "extra": {"x": 4, "y": "1", "z": True},
        "other": None,
    },
    {"name": "a", "inner": {"rate": 1e-3, "steps": None}, "numbers": [], "extra": {}, "other": {"rate": 0.5, "steps": 1}},
    {"name": "b", "inner": {"rate": float("inf"), "steps": 0}, "numbers": [-1.5], "extra": {"x": [1, 2.5]}, "other": None},
    {"name": 12, "inner": {"rate": "1e-2", "steps": 10**12}, "numbers": [1], "extra": {"x": {"y": 9}}, "other": None},
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("before", CONFIGS)
def test_a_sheet_is_what_omegaconf_makes_of_it_after_any_other(before: dict[str, Any], config: dict[str, Any]) -> None:
    typed("outer", before, Outer)

    made = typed("outer", config, Outer)

    expected = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Outer), config))
    assert made == expected
    assert type(made.inner.rate) is float
    assert [type(number) for number in made.numbers] == [float] * len(made.numbers)


def test_what_is_done_to_one_instance_does_not_reach_the_next() -> None:
    typed("outer", CONFIGS[0], Outer).inner.rate = 99.0

    assert typed("outer", CONFIGS[0], Outer).inner.rate == 2.0


def test_a_number_of_the_wrong_kind_is_named_as_it_was_given() -> None:
    with pytest.raises(ConfigError, match=r"^outer\.inner\.steps: .*7\.25"):
        typed("outer", {**CONFIGS[0], "inner": {"rate": 1.0, "steps": 7.25}}, Outer)
