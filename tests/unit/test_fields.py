"""A config becomes its dataclass as OmegaConf would make it, and every number of every config has a range."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any

import pytest
from omegaconf import OmegaConf

from alignlab.config import GROUPS, TopConfig
from alignlab.errors import ConfigError
from alignlab.registry import Allowed, names, number, one_of, path, pattern, text, typed


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
    {"name": "b", "inner": {"rate": 1e9, "steps": 0}, "numbers": [-1.5], "extra": {"x": [1, 2.5]}, "other": None},
    {"name": 12, "inner": {"rate": "1e-2", "steps": 10**12}, "numbers": [1], "extra": {"x": {"y": 9}}, "other": None},
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("before", CONFIGS)
def test_a_config_is_what_omegaconf_makes_of_it_after_any_other(before: dict[str, Any], config: dict[str, Any]) -> None:
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
    with pytest.raises(ConfigError, match=r"^outer\.inner\.steps=7\.25 must be a whole number, or null\.$"):
        typed("outer", {**CONFIGS[0], "inner": {"rate": 1.0, "steps": 7.25}}, Outer)


def configs(schema: type) -> Iterator[type]:
    """A config class and those inside it."""
    yield schema
    for hint in typing.get_type_hints(schema).values():
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner):
                yield from configs(typing.cast(type, inner))


SCHEMAS = {TopConfig, *(entry.config for table in GROUPS.values() for entry in table.values())}
CLASSES = sorted({inner for schema in SCHEMAS for inner in configs(schema)}, key=lambda schema: schema.__qualname__)


def numbers(schema: type) -> Iterator[tuple[str, Any, bool, bool]]:
    """Name, declared type, whether it may be null and whether it is a list, of each field with numbers."""
    for name, hint in typing.get_type_hints(schema, include_extras=True).items():
        bare = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
        arguments = typing.get_args(bare) if typing.get_origin(bare) in (UnionType, typing.Union) else (bare,)
        kinds = [kind for argument in arguments for kind in (argument, *typing.get_args(argument))]
        if {int, float} & set(kinds):
            yield name, hint, NoneType in arguments, any(typing.get_origin(kind) is list for kind in kinds)


@pytest.mark.parametrize("schema", CLASSES, ids=lambda schema: schema.__qualname__)
def test_every_number_of_every_config_is_declared_and_finite(schema: type) -> None:
    for name, hint, optional, listed in numbers(schema):
        assert isinstance(typing.get_args(hint)[-1], Allowed), name
        one = dataclasses.make_dataclass("One", [(name, hint)])
        bad: list[Any] = [math.nan, math.inf, -math.inf, 1e300, -1e300, "many", True, [[]], {}]
        for value in bad if optional else [*bad, None]:
            for given in ([value] if listed and value is not None else value, value) if listed else (value,):
                if "dict" in str(hint) and given == {}:
                    continue  # no weights at all; what is missing is said by the mixture
                with pytest.raises(ConfigError, match=rf"^group\.{name}"):
                    typed("group", {name: given}, one)


@dataclass
class Several:
    rate: Annotated[float | None, number(above=0, below=1, note="a share", either="steps")]
    steps: Annotated[int | None, number(minimum=1)]
    words: Annotated[list[str], one_of("a", "b", least=1, unique=True)]
    frame: Annotated[str, text(holds="{x}")]
    place: Annotated[str, one_of("here", "there")]
    targets: Annotated[Any, names(empty="names nothing.", alone=("place", "there"))]
    other: Annotated[str | None, text(filled=True, unlike="frame")]
    inner: Annotated[int | None, number(minimum=0, needs=("targets", "give both"))]
    folder: Annotated[str | None, path()]
    files: Annotated[str, pattern()]


SEVERAL = {
    "rate": 0.5,
    "steps": None,
    "words": ["a"],
    "frame": "{x}",
    "place": "here",
    "targets": None,
    "other": "o",
    "inner": None,
    "folder": None,
    "files": "*.csv",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rate": 1.0}, "s.rate=1.0 must be above 0 and below 1, or null: a share."),
        ({"steps": 0}, "s.steps=0 must be at least 1, or null."),
        ({"steps": 3}, "s: give rate or steps, and null for the other; now rate=0.5 and steps=3."),
        ({"rate": None}, "s: give rate or steps, and null for the other; now rate=None and steps=None."),
        ({"words": []}, "s.words=[] must have at least 1 value."),
        ({"words": ["a", "c"]}, "s.words[1]='c' is not known; choose one of a, b."),
        ({"words": ["a", "a"]}, "s.words=['a', 'a'] names a value twice."),
        ({"words": "a"}, "s.words='a' must be a list."),
        ({"frame": "{x}{x}"}, "s.frame='{x}{x}' must hold {x} exactly once."),
        ({"frame": ["{x}"]}, "s.frame=['{x}'] must be a text."),
        ({"targets": []}, "s.targets=[] names nothing."),
        ({"targets": "("}, "s.targets=( is no pattern (missing ), unterminated subpattern at position 0); give one, or a list"),
        ({"targets": ["a"], "place": "there"}, "s.place=there and s.targets=['a'] exclude each other; give one of the two."),
        ({"other": " "}, "s.other=' ' is empty; give it a text, or null."),
        ({"other": "{x}"}, "s: other and frame are both '{x}'; give two different ones."),
        ({"inner": 1}, "s.inner=1 needs s.targets, which is null; give both."),
        ({"folder": ""}, "s.folder='' is empty; give it a text, or null."),
        ({"folder": "a\0"}, "s.folder='a\\x00' is no path: names have at most 255 bytes, a path 4095, and no NUL."),
        (
            {"folder": "None/hh"},
            "s.folder=None/hh lies in a folder that is not set; set s.folder, or what it is made of, such as paths.data=FOLDER"
            " or paths.models=FOLDER.",
        ),
        ({"folder": "é" * 128}, f"s.folder='{'é' * 12}...{'é' * 13}' is no path"),
        (
            {"files": "/data/*"},
            "s.files='/data/*' must be a pattern of file names below a folder, such as *.jsonl or **/*.csv.",
        ),
        ({"files": "a**"}, "s.files='a**' must be a pattern"),
        ({"steps": 2**60}, "s.steps=1152921504606846976 must be at most 9007199254740992 in size, or null."),
    ],
)
def test_what_a_field_declares_is_what_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as info:
        typed("s", {**SEVERAL, **changes}, Several)

    assert str(info.value).startswith(said)


def test_relations_between_fields_are_left_out_where_only_fields_are_asked_for() -> None:
    assert typed("s", {**SEVERAL, "steps": 3}, Several, whole=False).steps == 3
