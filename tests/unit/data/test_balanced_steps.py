"""Steps over groups of several classes: as many of each in every step, a rare class more often, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from alignlab.data.batching import Share, collate, plan
from alignlab.records import Encoded, EncodedGroup


def group(number: int, control: str | None, length: int = 0) -> EncodedGroup:
    ids = tuple(range(length or 2 + number % 7))
    return EncodedGroup(f"row {number}", (Encoded(ids, 1, control=control),))


def groups(*sizes: tuple[str | None, int]) -> list[EncodedGroup]:
    """So many of each class, one class after another."""
    names = [name for name, count in sizes for _ in range(count)]
    return [group(number, name) for number, name in enumerate(names)]


def steps_of(shares: Sequence[Share], step_groups: int) -> list[list[int]]:
    """The groups of each step, micro-batches put together."""
    stream = [member for share in shares for member in share.members]
    return [stream[begin : begin + step_groups] for begin in range(0, len(stream), step_groups)]


def counted(every: Sequence[EncodedGroup], step: Sequence[int]) -> dict[str | None, int]:
    """How many of each class a step holds."""
    return dict(Counter(every[member].members[0].control for member in step))


UNEVEN = groups(("good", 30), ("bad", 7), ("dull", 11))


@pytest.mark.parametrize("micro_groups", [2, 3, 6])
def test_every_step_has_as_many_of_each_class(micro_groups: int) -> None:
    shares = plan(UNEVEN, steps=40, step_groups=6, micro_groups=micro_groups, seed=0)

    assert [counted(UNEVEN, step) for step in steps_of(shares, 6)] == [{"good": 2, "bad": 2, "dull": 2}] * 40


@pytest.mark.parametrize("step_groups", [4, 5, 7, 8])
def test_where_a_step_does_not_divide_its_classes_differ_by_one_at_most(step_groups: int) -> None:
    shares = plan(UNEVEN, steps=40, step_groups=step_groups, micro_groups=step_groups, seed=0)

    floor = step_groups // 3
    counts = [counted(UNEVEN, step) for step in steps_of(shares, step_groups)]
    assert {count for each in counts for count in each.values()} == {floor, floor + 1}
    assert all(set(each) == {"good", "bad", "dull"} for each in counts)


@pytest.mark.parametrize("step_groups", [1, 2, 4, 5])
def test_over_steps_that_do_not_divide_no_class_falls_behind(step_groups: int) -> None:
    shares = plan(UNEVEN, steps=48, step_groups=step_groups, micro_groups=step_groups, seed=0)

    drawn = Counter(UNEVEN[member].members[0].control for share in shares for member in share.members)
    assert drawn == dict.fromkeys(("good", "bad", "dull"), 48 * step_groups // 3)


def test_a_rare_class_comes_round_sooner() -> None:
    every = groups(("common", 10), ("rare", 2))

    shares = plan(every, steps=10, step_groups=4, micro_groups=4, seed=0)  # 20 of each class

    drawn = Counter(member for share in shares for member in share.members)
    assert drawn == {**dict.fromkeys(range(10), 2), 10: 10, 11: 10}


def test_within_a_class_every_epoch_covers_each_group_once() -> None:
    shares = plan(UNEVEN, steps=21, step_groups=3, micro_groups=3, seed=0)  # 21 of each: three times the seven bad ones

    drawn = Counter(member for share in shares for member in share.members)
    assert {drawn[member] for member in range(30, 37)} == {3}
    assert {drawn[member] for member in range(37, 48)} == {1, 2}
    assert {drawn[member] for member in range(30)} == {0, 1}


def test_within_a_window_of_steps_groups_of_a_class_come_together_by_length() -> None:
    every = [group(number, name, 2 + 7 * (number % 2)) for name in ("good", "bad") for number in range(40)]

    shares = plan(every, steps=17, step_groups=4, micro_groups=4, seed=0)  # a window of 16 steps, and one

    mixed = [share for share in shares if len({every[member].length for member in share.members}) > 1]
    assert len(mixed) <= 4  # as drawn, nearly all would be


@pytest.mark.parametrize("name", [None, "good"])
def test_without_classes_or_with_one_every_epoch_covers_each_group_once(name: str | None) -> None:
    every = groups((name, 30))

    shares = plan(every, steps=15, step_groups=6, micro_groups=3, seed=0)

    assert Counter(member for share in shares for member in share.members) == dict.fromkeys(range(30), 3)


def test_one_class_is_planned_like_none() -> None:
    plans = [plan(groups((name, 30)), steps=20, step_groups=4, micro_groups=2, seed=3) for name in (None, "good")]

    assert plans[0] == plans[1]


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    first, again, other = (plan(UNEVEN, steps=20, step_groups=6, micro_groups=2, seed=seed) for seed in (3, 3, 4))

    assert first == again
    assert first != other


def test_each_micro_batch_carries_the_totals_of_its_step() -> None:
    shares = plan(UNEVEN, steps=5, step_groups=6, micro_groups=2, seed=0)

    for step in range(5):
        parts = shares[3 * step : 3 * step + 3]
        tokens = sum(UNEVEN[member].response_tokens for share in parts for member in share.members)
        assert [(share.step_groups, share.step_tokens) for share in parts] == [(6, tokens)] * 3


def test_a_batch_knows_the_class_of_each_member() -> None:
    both = EncodedGroup("pair", (Encoded((1, 2), 1, control="good"), Encoded((1, 3), 1, control="bad")))
    other = EncodedGroup("pair", (Encoded((1, 4), 1, control="bad"), Encoded((1, 5), 1, control="good")))

    made = collate([both, other], pad=0, step_groups=2, step_tokens=4)

    assert made.controls == ("good", "bad", "bad", "good")


def test_a_batch_without_classes_has_none() -> None:
    made = collate(groups((None, 3)), pad=0, step_groups=3, step_tokens=9)

    assert made.controls is None
