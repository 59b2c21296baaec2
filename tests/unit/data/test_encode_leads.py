"""Rows with a prefix in front of the prompt, and stages that read a part of a row: what is cut, what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from alignlab.data.encode import Limits, encode
from alignlab.data.source import LeftOut, Split
from alignlab.errors import DataError
from alignlab.records import Encoded, Example, Group, Record

BOS, EOS = 0, 1


def letters(examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
    """One token per letter, BOS in front, EOS behind."""
    heads = [(BOS, *map(ord, example.prefix)) for example in examples]
    return [
        Encoded((*head, *map(ord, e.prompt + e.response), EOS), len(head) + len(e.prompt), head=len(head))
        for head, e in zip(heads, examples, strict=True)
    ]


def split_of(*pairs: tuple[str, str, str]) -> Split:
    return Split(tuple(Record.pair(f"file:{number}", *texts) for number, texts in enumerate(pairs, start=1)))


def limits(max_tokens: int, too_long: str = "error", *, prompt: int | None = None, response: int | None = None) -> Limits:
    return Limits(max_tokens, too_long, prompt, response)


def insert_prefixes(record: Record) -> tuple[Group, ...]:
    """The first response, with nothing in front and behind a prefix of two tokens."""
    examples = (Example(record.prompt, record.responses[0].text, prefix=prefix) for prefix in ("", "PQ"))
    return (Group(record.row, tuple(examples)),)


def each(record: Record) -> tuple[Group, ...]:
    """Every response as a group of its own."""
    return tuple(Group(f"{record.row}/{r.label}", (Example(record.prompt, r.text),)) for r in record.responses)


def test_cutting_leaves_bos_and_the_lead_alone_and_takes_the_same_tokens_from_every_member() -> None:
    split = split_of(("abcd", "ef", "-"))  # 8 tokens, 10 behind the prefix

    groups, account = encode(split, insert_prefixes, letters, limits(8, "cut_prompt_left"))

    assert groups[0].members == (
        Encoded((BOS, *map(ord, "cdef"), EOS), start=3, head=1),
        Encoded((BOS, *map(ord, "PQcdef"), EOS), start=5, head=3),
    )
    assert account.cut == 1


def test_a_lead_that_leaves_no_room_for_the_prompt_drops_the_row_for_all_members() -> None:
    split = split_of(("ab", "cdef", "-"), ("ab", "cde", "-"))  # 10 tokens behind the prefix, and 9

    groups, account = encode(split, insert_prefixes, letters, limits(8, "cut_prompt_left"))

    assert [group.row for group in groups] == ["file:2"]
    assert account.dropped == {"longer than 8 tokens": 1}


@pytest.mark.parametrize("too_long", ["error", "drop", "cut_prompt_left", "cut_response"])
def test_a_stage_can_have_long_prompts_cut_whatever_happens_to_long_rows(too_long: str) -> None:
    split = split_of(("abcd", "ef", "-"), ("cd", "ef", "-"))

    groups, account = encode(split, insert_prefixes, letters, limits(99, too_long, prompt=5))

    # BOS, the prefix and two tokens of the prompt are 5; the second row had no more.
    assert [[member.start for member in group.members] for group in groups] == [[3, 5], [3, 5]]
    assert groups[0].members[1].ids == groups[1].members[1].ids == (BOS, *map(ord, "PQcdef"), EOS)
    assert account.cut == 1


def test_a_lead_as_long_as_the_longest_prompt_drops_the_row_and_says_so() -> None:
    split = split_of(("ab", "c", "-"))

    with pytest.raises(DataError, match=r"1 rows read, 0 kept, 1 dropped: prefix and prompt longer than 3 tokens\)"):
        encode(split, insert_prefixes, letters, limits(99, prompt=3))


def test_of_a_response_the_first_tokens_are_taken_and_the_row_is_counted() -> None:
    split = split_of(("ab", "cdef", "-"), ("ab", "cd", "-"), ("ab", "c", "-"))  # 5, 3 and 2 response tokens with EOS

    groups, account = encode(split, insert_prefixes, letters, limits(99, response=3))

    assert groups[0].members == (
        Encoded((BOS, *map(ord, "abcde")), start=3, head=1),
        Encoded((BOS, *map(ord, "PQabcde")), start=5, head=3),
    )
    assert groups[1].members[0].ids == (BOS, *map(ord, "abcd"), EOS)
    assert groups[2].members[0].ids == (BOS, *map(ord, "abc"), EOS)
    assert (account.shortened, account.cut, account.kept) == (1, 0, 3)


def test_a_row_may_fit_once_its_response_is_shortened() -> None:
    split = split_of(("ab", "cdefgh", "-"))  # 12 tokens behind the prefix

    groups, account = encode(split, insert_prefixes, letters, limits(7, response=2))

    assert [len(member.ids) for member in groups[0].members] == [5, 7]
    assert account.shortened == 1


def test_a_cut_prompt_and_a_cut_response_are_counted_each() -> None:
    groups, account = encode(split_of(("abcd", "efgh", "-")), insert_prefixes, letters, limits(7, "cut_response", prompt=5))

    # Prompts keep BOS, the prefix and two tokens; the response behind the prefix has two tokens of room.
    assert [member.ids for member in groups[0].members] == [(BOS, *map(ord, "cdefgh"))[:7], (BOS, *map(ord, "PQcdef"))]
    assert (account.cut, account.ended) == (1, 1)


def test_a_row_that_is_dropped_counts_neither_as_cut_nor_as_shortened() -> None:
    split = split_of(("ab", "cdefgh", "-"), ("a", "b", "-"))

    _, account = encode(split, insert_prefixes, letters, limits(6, "drop", response=2))

    assert (account.kept, account.cut, account.shortened) == (1, 0, 0)
    assert account.dropped == {"longer than 6 tokens": 1}


def test_a_view_that_makes_several_groups_of_a_record_says_how_many() -> None:
    split = split_of(("ab", "c", "de"), ("ab", "cdef", "g"))

    _, account = encode(split, each, letters, limits(6, "drop"))

    assert account.sentence() == "2 rows read as 4 items, 3 kept, 1 dropped: longer than 6 tokens"
    assert encode(replace(split, lost=(LeftOut("file:3", "empty"),) * 3), each, letters, limits(9))[1].made == 4
