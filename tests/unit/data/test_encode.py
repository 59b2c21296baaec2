"""Groups to ids: which rows are kept, cut, dropped or refused, and the account of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from alignlab.data.encode import Account, Limits, Truncation, chosen, encode, every, pair
from alignlab.data.source import LeftOut, Split
from alignlab.errors import DataError, UnusableRowError
from alignlab.records import Encoded, Example, Record, Response

BOS, EOS = 0, 1


def letters(examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
    """One token per letter, BOS in front, EOS behind."""
    return [
        Encoded(
            (BOS, *map(ord, example.prefix + example.prompt + example.response), EOS),
            1 + len(example.prefix + example.prompt),
            "~" in example.response,
            head=1 + len(example.prefix),
        )
        for example in examples
    ]


def split_of(*pairs: tuple[str, str, str], left_out: dict[str, int] | None = None) -> Split:
    records = tuple(Record.pair(f"file:{number}", *texts) for number, texts in enumerate(pairs, start=1))
    lost = [reason for reason, count in (left_out or {}).items() for _ in range(count)]
    return Split(records, tuple(LeftOut(f"lost:{place}", reason) for place, reason in enumerate(lost, start=1)))


def limits(max_tokens: int, too_long: str = "error") -> Limits:
    return Limits(max_tokens, too_long)


def test_every_row_that_fits_is_kept_as_it_is() -> None:
    split = split_of(("ab", "cd", "e"), ("f", "g", "h"))

    groups, account = encode(split, pair, letters, limits(6))

    assert [group.row for group in groups] == ["file:1", "file:2"]
    assert groups[0].members[0] == Encoded((BOS, *map(ord, "abcd"), EOS), 3, head=1)
    assert limits(6).of("a") == limits(6)
    assert account == Account(read=2, kept=2, dropped={}, cut=0, moved=0)


def test_a_row_of_exactly_the_limit_fits_and_one_token_more_is_an_error_that_names_it() -> None:
    split = split_of(("ab", "c", "d"), ("ab", "cd", "e"))  # 5 tokens and 6

    with pytest.raises(DataError) as said:
        encode(split, pair, letters, limits(5))

    assert str(said.value) == (
        "file:2: 6 tokens, but a row may have 5; set data.too_long=drop, cut_prompt_left or cut_response, or raise"
        " data.max_tokens if the model's context allows."
    )


def test_rows_of_a_task_have_its_limits_and_all_others_the_common_ones() -> None:
    common = Limits(100, "error", prompt_tokens=7, tasks={"a": (3, "drop")})

    assert common.of("a") == Limits(3, "drop", prompt_tokens=7, tasks={"a": (3, "drop")})
    assert common.of("b") is common.of(None) is common


def test_a_second_text_stays_with_the_first_one() -> None:
    record = Record("file:1", "a", (Response("yes"),), second="b")

    ((example,),) = (group.members for group in chosen(record))

    assert example == Example("a", "yes", second="b")


@pytest.mark.parametrize(("prompt_tokens", "kept", "start"), [(4, "abc", 4), (3, "bc", 3), (2, "c", 2), (1, None, None)])
def test_a_prompt_is_cut_to_its_limit_and_never_to_nothing(prompt_tokens: int, kept: str | None, start: int | None) -> None:
    split = split_of(("abc", "d", "e"), ("", "d", "e"))  # BOS and three letters, and BOS alone

    groups, account = encode(split, pair, letters, Limits(99, "error", prompt_tokens=prompt_tokens))

    prompts = {group.row: (group.members[0].ids[1 : group.members[0].start], group.members[0].start) for group in groups}
    assert prompts.pop("file:2") == ((), 1)
    assert prompts == ({} if kept is None else {"file:1": (tuple(map(ord, kept)), start)})
    assert account.cut == (prompt_tokens in (2, 3))
    assert account.dropped == ({"prefix and prompt longer than 1 tokens": 1} if kept is None else {})


def test_a_prompt_of_one_token_more_than_its_limit_is_never_cut_to_nothing() -> None:
    with pytest.raises(DataError, match="1 dropped: prefix and prompt longer than 1 tokens"):
        encode(split_of(("a", "d", "e")), pair, letters, Limits(99, "error", prompt_tokens=1))


def test_drop_leaves_the_long_row_out_and_counts_it() -> None:
    split = split_of(("ab", "c", "d"), ("ab", "cd", "e"))

    groups, account = encode(split, pair, letters, limits(5, "drop"))

    assert [group.row for group in groups] == ["file:1"]
    assert account.dropped == {"longer than 5 tokens": 1}


def test_cutting_takes_the_prompt_from_the_left_keeps_bos_and_never_touches_a_response() -> None:
    split = split_of(("abcd", "ef", "g"))  # 8 tokens and 7

    groups, account = encode(split, pair, letters, limits(6, "cut_prompt_left"))

    assert groups[0].members == (
        Encoded((BOS, *map(ord, "cdef"), EOS), start=3, head=1),
        Encoded((BOS, *map(ord, "cdg"), EOS), start=3, head=1),
    )
    assert account.cut == 1


def test_without_bos_cutting_begins_at_the_first_token() -> None:
    split = Split((Record("file:1", "abcd", (Response("e"),)),))

    groups, _ = encode(split, every, lambda examples, _: [Encoded((*map(ord, "abcde"), EOS), 4)], limits(4, "cut_prompt_left"))

    assert groups[0].members == (Encoded((*map(ord, "cde"), EOS), start=2),)


def test_a_row_whose_response_would_have_to_be_cut_is_dropped_and_counted() -> None:
    split = split_of(("ab", "cdefg", "h"), ("ab", "c", "d"))  # 9 tokens: without the whole prompt still 7

    groups, account = encode(split, pair, letters, limits(6, "cut_prompt_left"))

    assert [group.row for group in groups] == ["file:2"]
    assert account.dropped == {"longer than 6 tokens": 1}
    assert account.cut == 0


def test_a_cut_prompt_keeps_at_least_one_token_of_its_own() -> None:
    split = split_of(("ab", "cde", "f"), ("ab", "cd", "e"))  # 7 tokens: 2 too many; 6 tokens: 1 too many

    groups, _ = encode(split, pair, letters, limits(5, "cut_prompt_left"))

    assert [group.row for group in groups] == ["file:2"]
    assert groups[0].members[0].ids == (BOS, *map(ord, "bcd"), EOS)


def test_cutting_responses_takes_their_end_and_eos_and_leaves_the_prompt_and_shorter_ones_alone() -> None:
    split = split_of(("ab", "cdef", "g"), ("ab", "c", "d"))  # 8 tokens and 5; 5 and 5

    groups, account = encode(split, pair, letters, limits(6, "cut_response"))

    assert groups[0].members == (
        Encoded((BOS, *map(ord, "abcde")), start=3, head=1),
        Encoded((BOS, *map(ord, "abg"), EOS), start=3, head=1),
    )
    assert groups[1].members[0].ids == (BOS, *map(ord, "abc"), EOS)
    assert (account.ended, account.cut, account.shortened, account.kept) == (1, 0, 0, 2)


def test_a_response_of_exactly_the_room_there_is_loses_its_eos_alone() -> None:
    groups, account = encode(split_of(("ab", "cd", "e")), pair, letters, limits(5, "cut_response"))

    assert groups[0].members[0].ids == (BOS, *map(ord, "abcd"))
    assert account.ended == 1


def test_a_prompt_that_leaves_no_room_for_a_response_drops_the_row_and_says_so() -> None:
    split = split_of(("abcd", "ef", "g"), ("abc", "ef", "g"))

    groups, account = encode(split, pair, letters, limits(5, "cut_response"))

    assert [(group.row, group.members[0].ids) for group in groups] == [("file:2", (BOS, *map(ord, "abce")))]
    assert account.dropped == {"no room for a response in 5 tokens": 1}
    assert account.ended == 1


def test_where_no_row_is_left_the_error_tells_the_counts() -> None:
    split = split_of(("ab", "cd", "e"), ("ab", "cd", "e"), left_out={"prompts of the pair differ": 3})

    with pytest.raises(
        DataError, match=r"5 rows read, 0 kept, 3 dropped: prompts of the pair differ; 2 dropped: longer than 5"
    ):
        encode(split, pair, letters, limits(5, "drop"))


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(DataError, match="no row is left to work on"):
        encode(Split(()), pair, letters, limits(5))


def test_records_that_hold_nothing_for_the_view_are_counted() -> None:
    single = Record("file:1", "a", (Response("b", label="bad"),))
    split = Split((single, Record.pair("file:2", "a", "b", "c")))

    groups, account = encode(split, pair, letters, limits(9))

    assert [group.row for group in groups] == ["file:2"]
    assert account.dropped == {"nothing in it for this stage": 1}
    assert account.lost == (LeftOut("file:1", "nothing in it for this stage"),)


def test_rows_left_out_while_reading_stay_in_the_account() -> None:
    split = split_of(("a", "b", "c"), left_out={"prompts of the pair differ": 2})

    _, account = encode(split, chosen, letters, limits(9))

    assert (account.read, account.kept) == (3, 1)
    assert account.dropped == {"prompts of the pair differ": 2}
    assert account.lost == split.lost
    assert Account(**account.counts()) == account
    assert "lost" not in account.counts()


def refusing(examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
    """A tokenizer that cannot take the letter x."""
    for example, row in zip(examples, rows, strict=True):
        if "x" in example.response:
            raise UnusableRowError(f"{row}: holds x; remove the row.", "an x")
    return letters(examples, rows)


def test_a_row_that_the_tokenizer_cannot_take_is_named_and_is_left_out_alone_where_rows_may_be() -> None:
    split = split_of(("a", "b", "c"), ("a", "x", "c"), ("d", "e", "f"))

    with pytest.raises(UnusableRowError, match=r"^file:2: holds x"):
        encode(split, pair, refusing, limits(9))
    groups, account = encode(split, pair, refusing, replace(limits(9), drops=True))

    assert [group.row for group in groups] == ["file:1", "file:3"]
    assert groups == encode(split_of(("a", "b", "c"), ("", "", ""), ("d", "e", "f")), pair, letters, limits(9))[0][::2]
    assert account.lost == (LeftOut("file:2", "an x"),)


def test_each_row_keeps_its_task_and_is_held_to_its_limit() -> None:
    records = [replace(Record.pair(f"file:{task}", "ab", "c", "d"), task=task) for task in ("a", "b")]  # 5 tokens
    common = Limits(99, "error", tasks={"a": (4, "drop")})

    groups, account = encode(Split(tuple(records)), pair, letters, common)

    assert [(group.row, group.task) for group in groups] == [("file:b", "b")]
    assert account.lost == (LeftOut("file:a", "longer than 4 tokens"),)


def test_what_a_stage_reads_of_a_row_is_added_to_the_limits_of_the_data() -> None:
    assert Truncation(3, 2)(limits(9)) == Limits(9, "error", prompt_tokens=3, response_tokens=2)


def test_rows_with_responses_tokenised_apart_are_counted_once_per_row() -> None:
    split = split_of(("a", "~b", "~c"), ("a", "b", "c"))

    _, account = encode(split, pair, letters, limits(9))

    assert account.moved == 1


@pytest.mark.parametrize(
    ("account", "sentence"),
    [
        (Account(5, 5, {}, 0, 0), "5 rows read, 5 kept, none dropped"),
        (
            Account(9, 6, {"longer than 8 tokens": 2, "prompts of the pair differ": 1}, 4, 3),
            "9 rows read, 6 kept, 2 dropped: longer than 8 tokens; 1 dropped: prompts of the pair differ;"
            " 4 prompts cut on the left; in 3 a response that would merge with its prompt is tokenised apart",
        ),
        (
            Account(4, 3, {"longer than 8 tokens": 1}, 1, 0, shortened=2),
            "4 rows read, 3 kept, 1 dropped: longer than 8 tokens; 1 prompts cut on the left;"
            " of 2 responses the first tokens are used",
        ),
        (
            Account(4, 4, {}, 0, 0, made=5, notes={"hold a tag": 2, "end in a blank": 1}),
            "4 rows read as 5 items, 4 kept, none dropped; 2 hold a tag; 1 end in a blank",
        ),
        (
            Account(4, 4, {}, 0, 1, ended=2),
            "4 rows read, 4 kept, none dropped; 2 with a response cut at its end, which is not trained as one;"
            " in 1 a response that would merge with its prompt is tokenised apart",
        ),
    ],
)
def test_the_account_is_one_sentence(account: Account, sentence: str) -> None:
    assert account.sentence() == sentence
