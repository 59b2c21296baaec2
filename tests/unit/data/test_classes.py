"""Classes of responses: how they are found, what each response belongs to, and what is left out and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from alignlab.data.classes import LABELLED, Classes, classed, find, labelled
from alignlab.data.config import ClassesConfig
from alignlab.data.source import LeftOut, Source, Split
from alignlab.errors import DataError
from alignlab.records import Record, Response

UNKNOWN, ON_A_CUT, CONFLICT = "of no class", "score on a cut between classes", "the same text under two classes"


def config(by: str, **changes: Any) -> ClassesConfig:
    values: dict[str, Any] = {"by": by, "names": None, "bins": 2, "attributes": []}
    return ClassesConfig(**{**values, **changes})


def single(number: int, **known: Any) -> Record:
    """A record of one response."""
    return Record(f"row {number}", f"prompt {number}", (Response(f"answer {number}", **known),))


def source(train: Sequence[Record], test: Sequence[Record] = (), **left_out: int) -> Source:
    lost = tuple(LeftOut(f"lost:{place}", reason) for reason, count in left_out.items() for place in range(count))
    return Source("made", {"train": lambda: Split(tuple(train), lost), "test": lambda: Split(tuple(test))})


def labels(*given: str | None) -> Source:
    return source([single(number, label=label) for number, label in enumerate(given)])


def scores(*given: float | None) -> Source:
    return source([single(number, score=score) for number, score in enumerate(given)])


def held(split: Split) -> list[tuple[str, str | None]]:
    """Row and class of each item."""
    return [(record.row, record.responses[0].label) for record in split.records]


def items(by: ClassesConfig, given: Source) -> Split:
    """The items of the training split."""
    return labelled(given, "train", find(by, given))


def test_the_two_sides_of_a_pair_are_two_classes() -> None:
    given = source([Record.pair("row 0", "Why?", "Because.", "No.")])
    classes = find(config("pairs", names=["good", "bad"]), given)

    made = labelled(given, "train", classes)

    assert classes.names == ("good", "bad")
    assert made.records == (
        Record("row 0/0", "Why?", (Response("Because.", label="good"),)),
        Record("row 0/1", "Why?", (Response("No.", label="bad"),)),
    )


def test_a_response_that_is_no_side_of_a_pair_is_left_out_and_counted() -> None:
    given = source([Record.pair("row 0", "Why?", "Because.", "No."), single(1), single(2, label="maybe")], unreadable=3)

    made = items(config("pairs", names=["good", "bad"]), given)

    assert held(made) == [("row 0/0", "good"), ("row 0/1", "bad")]
    assert made.left_out == {"unreadable": 3, UNKNOWN: 2}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["bad", "good", "bad"], ("good", "bad")),
        (["rejected", "chosen"], ("chosen", "rejected")),
        (["dull", "bad", "good"], ("good", "bad", "dull")),
    ],
    ids=str,
)
def test_labels_are_classes_and_a_liked_one_comes_first(given: list[str], names: tuple[str, ...]) -> None:
    assert find(config("labels"), labels(*given)).names == names


def test_labels_of_which_none_says_that_it_is_the_best_have_to_be_named() -> None:
    with pytest.raises(DataError, match="the labels are 0, 1, and none of them says that it is the best; name them"):
        find(config("labels"), labels("1", "0"))


def test_the_names_that_are_given_are_the_classes_in_their_order() -> None:
    given = labels("good", "bad", "dull", None)
    classes = find(config("labels", names=["dull", "good"]), given)

    made = labelled(given, "train", classes)

    assert classes.names == ("dull", "good")
    assert held(made) == [("row 0/0", "good"), ("row 2/0", "dull")]
    assert made.left_out == {UNKNOWN: 2}


def test_scores_are_cut_in_the_middle_and_the_higher_ones_are_the_first_class() -> None:
    # falling: 9, 7, | 4, 1; the cut lies half-way between 7 and 4
    given = scores(1.0, 9.0, 4.0, 7.0, None)
    classes = find(config("scores"), given)

    made = labelled(given, "train", classes)

    assert (classes.names, classes.edges) == (("high", "low"), (5.5,))
    assert held(made) == [("row 0/0", "low"), ("row 1/0", "high"), ("row 2/0", "low"), ("row 3/0", "high")]
    assert made.left_out == {UNKNOWN: 1}


def test_three_bins_have_two_falling_edges() -> None:
    # falling: 12, 10, | 8, 6, | 4, 2
    given = scores(2.0, 4.0, 6.0, 8.0, 10.0, 12.0)
    classes = find(config("scores", bins=3), given)

    made = labelled(given, "train", classes)

    assert (classes.names, classes.edges) == (("high", "middle", "low"), (9.0, 5.0))
    assert [label for _, label in held(made)] == ["low", "low", "middle", "middle", "high", "high"]


@pytest.mark.parametrize(
    ("bins", "given", "names"),
    [(4, None, ("bin1", "bin2", "bin3", "bin4")), (2, None, ("high", "low")), (2, ["fine", "poor"], ("fine", "poor"))],
)
def test_bins_have_names_of_their_own_or_those_given(bins: int, given: list[str] | None, names: tuple[str, ...]) -> None:
    assert find(config("scores", bins=bins, names=given), scores(*map(float, range(8)))).names == names


def test_scores_that_tie_on_a_cut_are_left_out_and_counted() -> None:
    # falling: 9, 5, 5, | 5, 1, 0
    given = scores(5.0, 9.0, 5.0, 0.0, 5.0, 1.0)

    made = items(config("scores"), given)

    assert held(made) == [("row 1/0", "high"), ("row 3/0", "low"), ("row 5/0", "low")]
    assert made.left_out == {ON_A_CUT: 3}


@pytest.mark.parametrize(("bins", "edges"), [(2, (3.5,)), (3, (5.5, 2.5)), (4, (5.5, 3.5, 2.5))])
def test_scores_that_do_not_divide_are_cut_at_the_nearest_places(bins: int, edges: tuple[float, ...]) -> None:
    # falling: 7 6 5 4 3 2 1; halves lie behind 3.5 of them, thirds behind 2.33 and 4.67, quarters behind 1.75, 3.5 and 5.25
    assert find(config("scores", bins=bins), scores(*map(float, range(1, 8)))).edges == edges


def test_held_out_scores_are_cut_where_the_training_split_was() -> None:
    given = source([single(0, score=0.0), single(1, score=10.0)], [single(2, score=6.0), single(3, score=5.0)])

    made = labelled(given, "test", find(config("scores"), given))

    assert held(made) == [("row 2/0", "high")]
    assert made.left_out == {ON_A_CUT: 1}


def test_fewer_scores_than_bins_are_refused() -> None:
    with pytest.raises(DataError, match=r"bins=3, but the training split has 2 scores; give more data"):
        find(config("scores", bins=3), scores(1.0, 2.0, None))


def attributed(*given: dict[str, str]) -> Source:
    return source([single(number, attributes=attributes) for number, attributes in enumerate(given)])


MOODS = (
    {"mood": "happy", "length": "long"},
    {"mood": "sad", "length": "short"},
    {"mood": "happy", "length": "short"},
    {"mood": "sad"},
)


def test_attributes_are_crossed() -> None:
    classes = find(config("attributes", attributes=["mood", "length"]), attributed(*MOODS))

    made = labelled(attributed(*MOODS), "train", classes)

    assert classes.names == ("happy-long", "happy-short", "sad-short")
    assert classes.attributes["sad-short"] == {"mood": "sad", "length": "short"}
    assert [label for _, label in held(made)] == ["happy-long", "sad-short", "happy-short"]
    assert made.left_out == {UNKNOWN: 1}


def test_the_same_text_under_two_classes_is_left_out_wherever_it_stands() -> None:
    twice = [Record(f"twice {label}", "Why?", (Response("Because.", label=label),)) for label in ("good", "bad")]
    alike = [Record(f"alike {number}", "Why?", (Response("So.", label="good"),)) for number in (1, 2)]
    elsewhere = Record("elsewhere", "How?", (Response("Because.", label="bad"),))

    made = items(config("labels"), source([*twice, *alike, elsewhere]))

    assert held(made) == [("alike 1/0", "good"), ("alike 2/0", "good"), ("elsewhere/0", "bad")]
    assert made.left_out == {CONFLICT: 2}


def test_a_pair_of_equal_answers_belongs_to_no_class() -> None:
    given = source([Record.pair("row 0", "Why?", "So.", "So."), Record.pair("row 1", "Why?", "Because.", "No.")])

    made = items(config("pairs", names=["good", "bad"]), given)

    assert held(made) == [("row 1/0", "good"), ("row 1/1", "bad")]
    assert made.left_out == {CONFLICT: 2}


@pytest.mark.parametrize(
    ("by", "given", "found"),
    [
        (config("labels"), labels("good", "good"), "by=labels finds good in the training split of data=made"),
        (config("labels"), labels(None), "by=labels finds no class in the training split of data=made"),
        (config("attributes", attributes=["mood"]), attributed({"mood": "sad"}, {}), "by=attributes finds sad in"),
    ],
    ids=["one label", "no label", "one attribute"],
)
def test_a_single_class_is_refused(by: ClassesConfig, given: Source, found: str) -> None:
    with pytest.raises(DataError, match=f"{found}.*chooses between at least two"):
        find(by, given)


def test_a_class_without_rows_is_refused_with_the_counts_of_all() -> None:
    given = labels("good", "good", "bad", None)

    with pytest.raises(DataError, match=r"class 'dull' has no training row \(good: 2, bad: 1, dull: 0; 1 of no class\)"):
        items(config("labels", names=["good", "bad", "dull"]), given)


def test_a_class_that_lost_all_its_rows_to_ties_is_refused_with_the_reason() -> None:
    with pytest.raises(DataError, match=r"class 'high' has no training row \(high: 0, low: 1; 3 score on a cut between"):
        items(config("scores"), scores(5.0, 5.0, 5.0, 1.0))


def test_a_held_out_split_may_lack_a_class() -> None:
    given = source([single(0, label="good"), single(1, label="bad")], [single(2, label="bad")])

    made = labelled(given, "test", find(config("labels"), given))

    assert held(made) == [("row 2/0", "bad")]


@pytest.mark.parametrize("by", [config("labels"), config("pairs", names=["good", "none"])], ids=["found", "given"])
def test_a_class_called_none_is_refused(by: ClassesConfig) -> None:
    with pytest.raises(DataError, match="a class of data=made is called 'none', which stands for no class; rename it"):
        find(by, labels("good", "none"))


def test_a_source_with_classes_has_two_more_splits_and_keeps_its_own() -> None:
    given = source([single(0, label="good"), single(1, label="bad")], [single(2, label="bad")])

    made = classed(given, Classes(("good", "bad"), lambda response: str(response.label)))

    assert held(made.split(LABELLED["train"])) == [("row 0/0", "good"), ("row 1/0", "bad")]
    assert held(made.split(LABELLED["test"])) == [("row 2/0", "bad")]
    assert made.split("train") == given.split("train")
