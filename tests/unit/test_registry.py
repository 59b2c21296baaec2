"""Tables of what can be chosen, and the sentence for a name that is not in one."""

from __future__ import annotations

import pytest

from alignlab.errors import ConfigError
from alignlab.registry import Entry, Registry, choose, nearest, unknown


class ControlConfigLike:
    """A config class."""


def build(config: object) -> object:
    return config


ENTRY = Entry(ControlConfigLike, build)
FRUIT = Registry("fruit", {"banana": ENTRY, "cherry": ENTRY, "fig": ENTRY})


def test_a_known_name_gives_its_entry() -> None:
    assert FRUIT["banana"] is ENTRY


def test_names_are_listed_in_the_order_of_the_table() -> None:
    assert (list(FRUIT), len(FRUIT)) == (["banana", "cherry", "fig"], 3)


def test_an_unknown_name_is_answered_with_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown fruit 'bananna'; did you mean banana\? known: banana, cherry, fig\."):
        FRUIT["bananna"]


def test_a_name_like_no_other_is_answered_with_all_known_ones() -> None:
    assert unknown("fruit", "xyz", FRUIT) == "unknown fruit 'xyz'; known: banana, cherry, fig."


def test_whether_a_name_is_known_can_be_asked() -> None:
    assert "banana" in FRUIT
    assert "bananna" not in FRUIT


def test_later_changes_of_the_given_table_do_not_reach_the_registry() -> None:
    entries = {"banana": ENTRY}
    registry = Registry("fruit", entries)

    entries["fig"] = ENTRY

    assert list(registry) == ["banana"]


def test_nearest_names_come_best_first() -> None:
    assert nearest("red", ["sft", "red_plus", "red"]) == ["red", "red_plus"]


def test_an_entry_needs_and_offers_nothing_unless_it_says_so() -> None:
    assert (ENTRY.requires(ControlConfigLike()), ENTRY.provides(ControlConfigLike())) == (frozenset(), frozenset())


def test_a_value_of_a_table_is_chosen_by_the_keys_of_its_path() -> None:
    table = {"red": {"rte": 8e-3, "other": 1e-3}, "other": 5e-4}

    assert [choose(path, table) for path in ("red.rte", "red.mnli", "lora.rte")] == [8e-3, 1e-3, 5e-4]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("red.mnli", r"unknown choice in red\.mnli 'mnli'.*known: rte"),
        ("red", "red names no value of a table; the next key is"),
    ],
)
def test_a_path_that_names_no_value_is_refused(path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose(path, {"red": {"rte": 8e-3}})
