"""How a stage sees a record."""

from __future__ import annotations

import pytest

from alignlab.data.encode import chosen, every, pair, rejected
from alignlab.records import Example, Group, Record, Response

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
