"""How a stage sees a record."""

from __future__ import annotations

import pytest

from alignlab.data.encode import Liked, Limits, chosen, encode, every, pair, rejected
from alignlab.data.source import Split
from alignlab.errors import DataError
from alignlab.records import Example, Group, Record, Response
from tests.conftest import CODEC

BOTH = Record.pair("row", "p", "better", "worse")


def single(label: str | None, score: float | None = None) -> Record:
    return Record("row", "p", (Response("answer", label=label, score=score),))


def test_a_pair_is_chosen_then_rejected_whatever_their_order_in_the_record() -> None:
    turned = Record("row", "p", tuple(reversed(BOTH.responses)))

    groups = [pair(BOTH), pair(turned)]

    assert groups == [(Group("row", (Example("p", "better"), Example("p", "worse"))),)] * 2


def test_a_single_response_is_no_pair() -> None:
    assert pair(single("chosen")) == ()


def test_the_chosen_view_takes_the_preferred_answer_of_a_pair() -> None:
    assert chosen(BOTH) == (Group("row", (Example("p", "better"),)),)


def test_the_rejected_view_takes_the_other_answer_of_a_pair_and_nothing_else() -> None:
    assert rejected(BOTH) == (Group("row", (Example("p", "worse"),)),)
    assert rejected(single("bad")) == ()


@pytest.mark.parametrize("label", ["chosen", "good", None])
def test_the_chosen_view_takes_a_single_response_that_is_good_or_unlabelled(label: str | None) -> None:
    assert chosen(single(label)) == (Group("row", (Example("p", "answer"),)),)


@pytest.mark.parametrize("label", ["rejected", "bad", "neutral"])
def test_the_chosen_view_passes_over_a_response_that_is_labelled_otherwise(label: str) -> None:
    assert chosen(single(label)) == ()


def test_the_chosen_view_takes_a_scored_response() -> None:
    assert chosen(single(None, score=0.2)) == (Group("row", (Example("p", "answer"),)),)


def test_the_chosen_view_passes_over_several_unlabelled_responses() -> None:
    record = Record("row", "p", (Response("a"), Response("b")))

    assert chosen(record) == ()


def test_plain_text_is_the_first_response_whatever_its_label() -> None:
    assert every(single("bad")) == (Group("row", (Example("p", "answer"),)),)


def scored(row: str, score: float | None, label: str | None = None) -> Record:
    return Record(row, "Ask.", (Response(f"Answer {row}.", label=label, score=score),))


def test_scored_responses_are_trained_on_from_the_least_score_on_and_the_others_are_counted() -> None:
    records = (scored("a", 0.2), scored("b", 0.5), scored("c", 0.9), scored("d", None), scored("e", 0.9, "bad"))

    groups, account = encode(Split(records), Liked(0.5), CODEC.examples, Limits(64, "error"))

    assert [group.row for group in groups] == ["b", "c", "d"]
    assert account.dropped == {"a score below method.least_score=0.5": 1, "no response labelled chosen or good": 1}


def test_of_a_pair_whose_better_response_has_too_low_a_score_nothing_is_trained_on() -> None:
    low = Response("Answer.", label="chosen", score=0.2)
    record = Record("a", "Ask.", (low, Response("Other.", label="rejected", score=0.9)))

    assert Liked(0.5)(record) == ()
    assert Liked(0.2)(record) == chosen(record) != ()


def test_several_responses_of_which_nothing_is_known_hold_nothing() -> None:
    record = Record("a", "Ask.", (Response("Answer."), Response("Other.")))

    assert Liked()(record) == ()
    assert Liked().left_out(record) == "nothing in it for this stage"


def test_labelled_responses_are_trained_on_where_they_are_good() -> None:
    records = (scored("a", None, "good"), scored("b", None, "bad"), scored("c", 0.1, "chosen"), scored("d", None, "funny"))

    groups, account = encode(Split(records), Liked(), CODEC.examples, Limits(64, "error"))

    assert [group.row for group in groups] == ["a", "c"]
    assert account.dropped == {"no response labelled chosen or good": 2}


def test_scores_without_a_label_and_a_least_score_are_refused_with_the_key_to_set() -> None:
    with pytest.raises(DataError, match=r"^b: the response has a score and no label.*set method\.least_score .*is 0\.5"):
        encode(Split((scored("a", None), scored("b", 0.5))), Liked(), CODEC.examples, Limits(64, "error"))
