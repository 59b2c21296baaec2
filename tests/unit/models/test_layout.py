"""How a batch is laid into rows of a forward pass, by hand."""

from __future__ import annotations

import torch

from alignlab.data.batching import whole
from alignlab.models.layout import can_share, one_row_per_group, one_row_per_member
from alignlab.records import Encoded, EncodedGroup

# Two prompt tokens; one response of two tokens, one of a single token.
GROUP = EncodedGroup("pair", (Encoded((1, 2, 3, 4), start=2), Encoded((1, 2, 5), start=2)))
SHORTER = EncodedGroup("pair", (Encoded((1, 6), start=1), Encoded((1, 7), start=1)))
BLOCKED = torch.finfo(torch.float32).min


def test_separate_rows_score_each_response_token_from_the_place_before_it() -> None:
    layout = one_row_per_member(whole([GROUP], pad=0))

    assert layout.ids_RT.tolist() == [[1, 2, 3, 4], [1, 2, 5, 0]]
    assert layout.target_K.tolist() == [3, 4, 5]
    assert layout.row_K.tolist() == [0, 0, 1]
    assert layout.time_K.tolist() == [1, 2, 1]
    assert layout.state_K.tolist() == [2, 3, 2]
    assert layout.member_K.tolist() == [0, 0, 1]


def test_a_packed_row_holds_the_prefix_once_and_counts_positions_on_from_it() -> None:
    layout = one_row_per_group(whole([GROUP], pad=0), torch.float32)

    assert layout.positions_RT is not None
    assert layout.ids_RT.tolist() == [[1, 2, 3, 4, 5]]
    assert layout.positions_RT.tolist() == [[0, 1, 2, 3, 2]]


def test_a_packed_row_scores_first_tokens_from_the_end_of_the_prefix() -> None:
    layout = one_row_per_group(whole([GROUP], pad=0), torch.float32)

    assert layout.target_K.tolist() == [3, 4, 5]
    assert layout.time_K.tolist() == [1, 2, 1]
    assert layout.state_K.tolist() == [2, 3, 4]
    assert layout.member_K.tolist() == [0, 0, 1]


def test_in_a_packed_row_a_member_sees_the_prefix_and_itself() -> None:
    layout = one_row_per_group(whole([GROUP], pad=0), torch.float32)

    seen = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert torch.equal(layout.mask[0, 0] == 0, torch.tensor(seen, dtype=torch.bool))
    assert layout.mask.min() == BLOCKED


def test_groups_of_different_length_are_padded_to_the_widest_and_number_their_members_on() -> None:
    layout = one_row_per_group(whole([SHORTER, GROUP], pad=0), torch.float32)

    assert layout.ids_RT.tolist() == [[1, 6, 7, 0, 0], [1, 2, 3, 4, 5]]
    assert layout.row_K.tolist() == [0, 0, 1, 1, 1]
    assert layout.member_K.tolist() == [0, 1, 2, 2, 3]
    assert layout.group_R.tolist() == [0, 1]


def test_every_row_of_a_packed_mask_sees_something() -> None:
    layout = one_row_per_group(whole([SHORTER, GROUP], pad=0), torch.float32)

    assert (layout.mask == 0).any(-1).all()


def test_a_prompt_token_outside_the_prefix_travels_with_its_member() -> None:
    group = EncodedGroup("moved", (Encoded((1, 2, 3, 4), start=3), Encoded((1, 2, 9), start=1)))

    layout = one_row_per_group(whole([group], pad=0), torch.float32)

    assert layout.ids_RT.tolist() == [[1, 2, 3, 4, 2, 9]]
    assert layout.target_K.tolist() == [4, 2, 9]
    assert layout.time_K.tolist() == [2, 0, 4]


def test_only_groups_of_several_members_with_a_common_token_can_share() -> None:
    single = EncodedGroup("row", GROUP.members[:1])
    strangers = EncodedGroup("pair", (Encoded((1, 2), start=1), Encoded((3, 4), start=1)))

    assert can_share(whole([GROUP, SHORTER], pad=0))
    assert not can_share(whole([single], pad=0))
    assert not can_share(whole([GROUP, strangers], pad=0))
