"""Training splits with labels swapped on purpose, or cut in halves: what is in them, and what was left out before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from omegaconf import DictConfig

from alignlab.config import parse
from alignlab.data.config import DataConfig
from alignlab.data.halves import EARLIER, HalvesConfig, flipped, with_halves
from alignlab.data.source import LeftOut, Source, Split
from alignlab.errors import DataError
from alignlab.records import Encoded, Example, Record, Response
from tests.conftest import CODEC
from tests.unit.conftest import DATA

ROWS = [f"file:{number}" for number in range(1, 1001)]


def words(examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
    """One token per word, BOS in front, EOS behind."""
    return [
        Encoded((0,) * (2 + len(each.prompt.split()) + len(each.response.split())), 1 + len(each.prompt.split()))
        for each in examples
    ]


def config(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        **DATA,
        "name": "made",
        "too_long": "drop",
    }
    return DataConfig(**{**values, **changes})


def halves(**changes: Any) -> HalvesConfig:
    values: dict[str, Any] = {"seed": 42, "test": None, "max_prompt": None}
    return HalvesConfig(**{**values, **changes})


def pair(row: str, *, prompt: str = "a b", chosen: str = "c", rejected: str = "d") -> Record:
    return Record.pair(row, prompt, chosen, rejected)


def source(train: Sequence[Record], **left_out: int) -> Source:
    """A training split, and two pairs to test with."""
    test = Split((pair("test:1"), pair("test:2")))
    lost = tuple(LeftOut(f"lost:{place}", reason) for reason, count in left_out.items() for place in range(count))
    return Source("made", {"train": lambda: Split(tuple(train), lost), "test": lambda: test})


def rows(split: Split) -> list[str]:
    return [record.row for record in split.records]


def turned(split: Split) -> set[str]:
    """The rows whose first answer is the rejected one."""
    return {record.row for record in split.records if record.responses[0].label == "rejected"}


PAIRS = [pair(row) for row in ROWS]


def test_a_config_that_asks_for_nothing_leaves_the_source_itself() -> None:
    given = source(PAIRS)

    assert with_halves(given, config(), words) is given


def test_no_split_is_read_before_it_is_asked_for() -> None:
    def unread() -> Split:
        raise AssertionError("read too early")

    made = with_halves(Source("made", {"train": unread, "test": unread}), config(flipped=0.5, halves=halves(test=1)), words)

    with pytest.raises(AssertionError, match="read too early"):
        made.split("train")


def test_a_flipped_pair_keeps_its_texts_scores_and_attributes_and_swaps_its_labels() -> None:
    record = Record("row", "p", (Response("yes", "chosen", 1.0, {"tone": "kind"}), Response("no", "rejected", -1.0)))

    split = flipped(Split((record,)), 1.0)

    assert split.records == (
        Record("row", "p", (Response("yes", "rejected", 1.0, {"tone": "kind"}), Response("no", "chosen", -1.0))),
    )


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_of_flipped_pairs_is_about_the_one_that_was_asked_for(share: float) -> None:
    count = len(turned(flipped(Split(tuple(PAIRS)), share)))

    assert count == pytest.approx(1000 * share, abs=63)  # 4 standard deviations of 1000 fair coins


def test_no_pair_is_flipped_at_0_and_every_pair_at_1() -> None:
    assert turned(flipped(Split(tuple(PAIRS)), 0.0)) == set()
    assert turned(flipped(Split(tuple(PAIRS)), 1.0)) == set(ROWS)


def test_pairs_flipped_at_a_smaller_share_are_among_those_of_a_larger_one() -> None:
    few, more = (turned(flipped(Split(tuple(PAIRS)), share)) for share in (0.1, 0.2))

    assert few < more


def test_a_row_alone_decides_whether_it_is_flipped() -> None:
    some = PAIRS[700:300:-2]

    assert turned(flipped(Split(tuple(some)), 0.3)) == turned(flipped(Split(tuple(PAIRS)), 0.3)) & {each.row for each in some}


@pytest.mark.parametrize(
    "labels",
    [(), ("chosen",), (None, None), ("chosen", "chosen"), ("chosen", "rejected", None), ("good", "bad")],
    ids=str,
)
def test_what_is_no_pair_is_never_flipped(labels: tuple[str | None, ...]) -> None:
    split = Split((Record("row", "p", tuple(Response("text", label) for label in labels)),), (LeftOut("lost:1", "unreadable"),))

    assert flipped(split, 1.0) == split


def test_the_training_split_is_flipped_and_the_test_split_is_not() -> None:
    made = with_halves(source(PAIRS), config(flipped=1.0), words)

    assert turned(made.split("train")) == set(ROWS)
    assert turned(made.split("test")) == set()


def test_a_source_that_was_read_before_stays_as_it_is_and_its_part_is_read_anew() -> None:
    given = source(PAIRS)
    before = given.split("train")

    made = with_halves(given, config(flipped=1.0), words).split("train")

    assert turned(made) == set(ROWS)
    assert given.split("train") is before


def test_halves_and_test_hold_every_record_once() -> None:
    made = with_halves(source(PAIRS), config(halves=halves(test=101)), words)

    rm, ppo, test = (rows(made.split(name)) for name in ("rm", "ppo", "test"))

    assert (len(rm), len(ppo), len(test)) == (450, 449, 101)  # of 899 the first half gets the larger part
    assert sorted([*rm, *ppo, *test]) == sorted(ROWS)
    assert rows(made.split("train")) == [*rm, *ppo]


def test_halves_are_shuffled_by_their_seed_alone() -> None:
    once, again, other = (
        rows(with_halves(source(PAIRS), config(halves=halves(seed=seed)), words).split("train")) for seed in (1, 1, 2)
    )

    assert once == again
    assert once != other
    assert sorted(once) == sorted(other) == sorted(ROWS)
    assert once != ROWS


def test_without_a_count_for_it_the_test_split_is_the_datas_own() -> None:
    given = source(PAIRS)

    assert with_halves(given, config(halves=halves()), words).split("test") is given.split("test")


def test_other_splits_the_judge_and_the_prompts_to_ask_stay_as_they_are(composed: Callable[..., DictConfig]) -> None:
    from alignlab.data import SOURCES

    data = parse(composed("data=toy", "data.pairs=9", "data.corpus=3", "data.halves={seed: 0, test: 3, max_prompt: null}")).data
    world = SOURCES["toy"].build(data)

    made = with_halves(world, data, CODEC.examples)

    assert made.split("corpus") is world.split("corpus")
    assert made.judge is world.judge
    assert made.prompts() == world.prompts()
    assert [len(made.split(name).records) for name in ("train", "rm", "ppo", "test")] == [6, 3, 3, 3]


@pytest.mark.parametrize("part", ["rm", "ppo"])
def test_a_part_makes_its_half_the_training_split(part: str) -> None:
    whole, made = (with_halves(source(PAIRS), config(halves=halves(test=100), part=named), words) for named in (None, part))

    assert rows(made.split("train")) == rows(whole.split(part))
    assert [rows(made.split(name)) for name in ("rm", "ppo", "test")] == [
        rows(whole.split(name)) for name in ("rm", "ppo", "test")
    ]


def test_halves_are_flipped_as_the_whole_split_is_and_a_test_split_cut_from_it_is_not() -> None:
    whole = turned(with_halves(source(PAIRS), config(flipped=0.3), words).split("train"))

    made = with_halves(source(PAIRS), config(flipped=0.3, halves=halves(test=100)), words)

    held_out = set(rows(made.split("test")))
    assert turned(made.split("test")) == set()
    assert turned(made.split("train")) == whole - held_out
    assert turned(made.split("rm")) | turned(made.split("ppo")) == whole - held_out


def test_records_over_the_limits_are_in_no_part() -> None:
    records = [
        pair("fits", prompt="a b c", chosen="d e", rejected="f"),  # BOS and 3; with response and EOS: 7 and 6
        pair("long prompt", prompt="a b c d"),
        pair("long chosen", prompt="a b c", chosen="d e f"),
        pair("long rejected", prompt="a b c", rejected="d e f"),
        pair("short"),
    ]

    made = with_halves(source(records), config(max_tokens=7, halves=halves(max_prompt=4)), words)

    assert sorted(rows(made.split("train"))) == ["fits", "short"]
    assert made.split("train").left_out == {
        f"prompt longer than 4 tokens, {EARLIER}": 1,
        f"longer than 7 tokens, {EARLIER}": 2,
    }


def test_a_record_too_long_in_two_ways_counts_once() -> None:
    records = [*PAIRS[:4], pair("long", prompt="a b c d", chosen="e f g h")]

    made = with_halves(source(records), config(max_tokens=5, halves=halves(max_prompt=3)), words)

    assert made.split("train").left_out == {f"prompt longer than 3 tokens, {EARLIER}": 1}


def test_the_prompt_is_counted_as_the_model_reads_it() -> None:
    prompt = "Tell a story about Tom and a kite."
    (ids,) = CODEC.prompts([prompt])  # with BOS and the template's line break
    records = [pair(row, prompt=prompt) for row in ROWS[:4]]

    made = with_halves(source(records), config(halves=halves(max_prompt=len(ids))), CODEC.examples)

    assert len(made.split("train").records) == 4
    with pytest.raises(DataError, match="of 4 training records 4 were left out"):
        with_halves(source(records), config(halves=halves(max_prompt=len(ids) - 1)), CODEC.examples).split("train")


def test_what_was_left_out_while_reading_is_told_of_every_part() -> None:
    records = [*PAIRS[:10], pair("long", prompt="a b c d")]
    given = source(records, unreadable=3)

    made = with_halves(given, config(halves=halves(test=2, max_prompt=3)), words)

    left_out = {f"unreadable, {EARLIER}": 3, f"prompt longer than 3 tokens, {EARLIER}": 1}
    assert [made.split(name).left_out for name in ("train", "rm", "ppo", "test")] == [left_out] * 4
    kept = sum(len(made.split(name).records) for name in ("rm", "ppo", "test"))
    assert kept + sum(left_out.values()) == len(records) + 3


def test_flipping_leaves_out_nothing_and_loses_no_count() -> None:
    made = with_halves(source(PAIRS, unreadable=3), config(flipped=0.5), words)

    assert rows(made.split("train")) == ROWS
    assert made.split("train").left_out == {"unreadable": 3}


@pytest.mark.parametrize(
    ("count", "test", "said"),
    [
        (0, None, "of 2 training records 2 were left out and 0 went to the test split, which leaves 0 for two halves;"),
        (1, None, "of 3 training records 2 were left out and 0 went to the test split, which leaves 1 for two halves;"),
        (9, 8, "of 11 training records 2 were left out and 8 went to the test split, which leaves 1 for two halves;"),
        (9, 20, "of 11 training records 2 were left out and 9 went to the test split, which leaves 0 for two halves;"),
    ],
)
@pytest.mark.parametrize("split", ["train", "rm", "ppo"])
def test_a_half_without_records_is_refused_with_what_became_of_them(
    split: str, count: int, test: int | None, said: str
) -> None:
    made = with_halves(source(PAIRS[:count], unreadable=2), config(halves=halves(test=test)), words)

    with pytest.raises(DataError, match=f"^data=made: {said} give more data, or change data.halves or data.max_tokens.$"):
        made.split(split)


def test_the_smallest_halves_hold_one_record_each() -> None:
    made = with_halves(source(PAIRS[:3]), config(halves=halves(test=1)), words)

    assert [len(made.split(name).records) for name in ("rm", "ppo", "test")] == [1, 1, 1]
