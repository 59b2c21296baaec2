"""Which groups make up each step, and groups to tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from alignlab.data.batching import Batches, Share, collate, in_order, padding_share, plan, whole
from alignlab.records import Encoded, EncodedGroup

PAD = 9


def single(length: int, start: int = 1) -> EncodedGroup:
    return EncodedGroup(f"row {length}", (Encoded(tuple(range(length)), start),))


def pair(first: Sequence[int], second: Sequence[int], start: int, reference: tuple[float, float] | None = None) -> EncodedGroup:
    return EncodedGroup("pair", (Encoded(tuple(first), start), Encoded(tuple(second), start)), reference)


VARIED = [single(2 + number % 7) for number in range(30)]


def stream(shares: Sequence[Share]) -> list[int]:
    return [member for share in shares for member in share.members]


def test_the_same_seed_gives_the_same_plan() -> None:
    first = plan(VARIED, steps=20, step_groups=4, micro_groups=2, seed=3)

    again = plan(VARIED, steps=20, step_groups=4, micro_groups=2, seed=3)

    assert again == first


def test_another_seed_gives_another_order() -> None:
    first = plan(VARIED, steps=20, step_groups=4, micro_groups=4, seed=3)

    other = plan(VARIED, steps=20, step_groups=4, micro_groups=4, seed=4)

    assert stream(other) != stream(first)


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_every_group_comes_once_per_epoch(epochs: int) -> None:
    shares = plan(VARIED, steps=5 * epochs, step_groups=6, micro_groups=3, seed=0)

    assert Counter(stream(shares)) == dict.fromkeys(range(30), epochs)


def test_no_step_is_short_where_an_epoch_does_not_divide_into_steps() -> None:
    shares = plan(VARIED, steps=7, step_groups=8, micro_groups=8, seed=0)

    assert [len(share.members) for share in shares] == [8] * 7
    assert all(1 <= count <= 2 for count in Counter(stream(shares)).values())  # 56 draws from 30 groups


def test_a_step_may_hold_more_groups_than_there_are() -> None:
    shares = plan(VARIED[:3], steps=2, step_groups=6, micro_groups=6, seed=0)

    assert [len(share.members) for share in shares] == [6, 6]
    assert Counter(stream(shares)) == {0: 4, 1: 4, 2: 4}


def test_each_micro_batch_carries_the_totals_of_its_step() -> None:
    groups = [single(length) for length in (2, 3, 4, 5)]  # 1, 2, 3 and 4 response tokens

    shares = plan(groups, steps=1, step_groups=4, micro_groups=2, seed=0)

    assert shares == [Share((0, 1), 4, 10), Share((2, 3), 4, 10)]


def test_a_window_of_steps_brings_groups_of_like_length_together() -> None:
    groups = [single(length) for length in (2, 9) * 40]

    shares = plan(groups, steps=17, step_groups=4, micro_groups=4, seed=0)  # a window of 16 steps, and one

    assert sum(len({groups[member].length for member in share.members}) > 1 for share in shares) <= 2


@pytest.mark.parametrize("steps", [2, 8, 16, 32])
def test_the_seed_decides_what_a_step_is_made_of_also_where_the_steps_are_whole_epochs(steps: int) -> None:
    groups = [single(length) for length in range(2, 2 + 4 * min(steps, 16))]

    made = [plan(groups, steps=steps, step_groups=4, micro_groups=4, seed=seed) for seed in (0, 1)]

    first, other = ({frozenset(share.members) for share in shares} for shares in made)
    assert first != other
    assert Counter(stream(made[0])) == dict.fromkeys(range(len(groups)), steps * 4 // len(groups))


def test_steps_of_a_window_do_not_come_in_order_of_length() -> None:
    groups = [single(length) for length in range(2, 18)]

    lengths = [groups[share.members[0]].length for share in plan(groups, steps=16, step_groups=1, micro_groups=1, seed=0)]

    assert sorted(lengths) == list(range(2, 18))
    assert lengths != sorted(lengths)


def test_the_first_token_of_a_row_is_not_counted_as_a_response_token() -> None:
    group = EncodedGroup("row", (Encoded((4, 5, 6), start=0),))

    assert group.response_tokens == 2


def test_batches_for_looking_begin_with_the_longest_and_hold_every_group_once() -> None:
    groups = [single(length) for length in (3, 5, 4, 5, 2)]

    batches = in_order(groups, 2)

    assert batches == [[1, 3], [2, 0], [4]]


def test_rows_are_padded_on_the_right_to_the_longest() -> None:
    batch = collate([pair([1, 2, 3], [1, 2, 4, 5], 2), pair([1, 6], [1, 7], 1)], pad=PAD, step_groups=8, step_tokens=50)

    assert batch.ids_GMT.tolist() == [[[1, 2, 3, PAD], [1, 2, 4, 5]], [[1, 6, PAD, PAD], [1, 7, PAD, PAD]]]
    assert batch.length_GM.tolist() == [[3, 4], [2, 2]]
    assert batch.start_GM.tolist() == [[2, 2], [1, 1]]
    assert (batch.rows, batch.step_groups, batch.step_tokens) == (("pair", "pair"), 8, 50)


@pytest.mark.parametrize(
    ("first", "second", "start", "prefix"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 5], 2, 2),  # the responses begin alike, but a prefix is prompt only
        ([1, 2, 3, 4], [1, 5, 3, 4], 2, 1),
        ([1, 2, 3], [4, 2, 3], 2, 0),
    ],
)
def test_the_prefix_is_what_the_prompts_have_in_common(first: list[int], second: list[int], start: int, prefix: int) -> None:
    batch = whole([pair(first, second, start)], PAD)

    assert batch.prefix_G.tolist() == [prefix]


def test_the_prefix_of_members_that_start_differently_ends_at_the_earlier_start() -> None:
    group = EncodedGroup("moved", (Encoded((1, 2, 3, 4), start=3), Encoded((1, 2, 3, 5), start=1)))

    batch = whole([group], PAD)

    assert batch.prefix_G.tolist() == [1]


def test_a_whole_batch_is_a_step_by_itself() -> None:
    batch = whole([pair([1, 2, 3], [1, 2, 4, 5], 2), pair([1, 6], [1, 7], 1)], PAD)

    assert (batch.step_groups, batch.step_tokens) == (2, 1 + 2 + 1 + 1)


def test_references_reach_the_batch_only_if_every_group_has_them() -> None:
    known, unknown = pair([1, 2], [1, 3], 1, (-1.5, -2.5)), pair([1, 2], [1, 3], 1)

    both = whole([known, known], PAD)
    mixed = whole([known, unknown], PAD)

    assert both.reference_GM is not None
    assert torch.equal(both.reference_GM, torch.tensor([[-1.5, -2.5], [-1.5, -2.5]]))
    assert mixed.reference_GM is None


def test_padding_share_counts_every_member_as_a_row() -> None:
    groups = [pair([1, 2, 3, 4], [1, 2], 1), single(3)]

    share = padding_share(groups, [Share((0,), 1, 4), Share((1,), 1, 2)])

    assert share == pytest.approx(2 / 11)  # the pair takes 8 places for 6 tokens, the single row 3 for 3


def test_the_data_set_makes_each_planned_batch_when_asked() -> None:
    groups = [single(2), single(4)]

    batches = Batches(groups, [Share((1,), 2, 4), Share((0,), 2, 4)], PAD)

    assert len(batches) == 2
    assert batches[0]["batch"].ids_GMT.tolist() == [[[0, 1, 2, 3]]]
    assert (batches[1]["batch"].step_groups, batches[1]["batch"].step_tokens) == (2, 4)
