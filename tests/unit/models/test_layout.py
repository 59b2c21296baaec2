"""How a batch is laid into rows of a forward pass, by hand."""

from __future__ import annotations

import torch

from alignlab.data.batching import whole
from alignlab.models.packing import Layout, can_share, one_row_per_member, without_padding
from alignlab.records import Encoded, EncodedGroup

# Two prompt tokens; one response of two tokens, one of a single token.
GROUP = EncodedGroup("pair", (Encoded((1, 2, 3, 4), start=2), Encoded((1, 2, 5), start=2)))
SHORTER = EncodedGroup("pair", (Encoded((1, 6), start=1), Encoded((1, 7), start=1)))


def test_separate_rows_score_each_response_token_from_the_place_before_it() -> None:
    layout = one_row_per_member(whole([GROUP], pad=0))

    assert layout.ids_RT.tolist() == [[1, 2, 3, 4], [1, 2, 5, 0]]
    assert layout.target_K.tolist() == [3, 4, 5]
    assert layout.row_K.tolist() == [0, 0, 1]
    assert layout.time_K.tolist() == [1, 2, 1]
    assert layout.state_K.tolist() == [2, 3, 2]
    assert layout.member_K.tolist() == [0, 0, 1]


def test_the_single_row_holds_the_prefix_once_and_counts_positions_on_from_it() -> None:
    layout = without_padding(whole([GROUP], pad=0), torch.float32)

    assert layout.positions_RT is not None
    assert layout.ids_RT.tolist() == [[1, 2, 3, 4, 5]]
    assert layout.positions_RT.tolist() == [[0, 1, 2, 3, 2]]


def test_the_single_row_scores_first_tokens_from_the_end_of_the_prefix() -> None:
    layout = without_padding(whole([GROUP], pad=0), torch.float32)

    assert layout.target_K.tolist() == [3, 4, 5]
    assert layout.time_K.tolist() == [1, 2, 1]
    assert layout.state_K.tolist() == [2, 3, 4]
    assert layout.member_K.tolist() == [0, 0, 1]


def seen_by(layout: Layout) -> dict[int, set[int]]:
    """Whom each token sees, read off the segments' masks."""
    assert layout.segments is not None
    seen: dict[int, set[int]] = {}
    place = 0
    for chunk in layout.segments.chunks:
        for ask, see, mask in zip(chunk.ask_SQ, chunk.see_SK, chunk.mask_S1QK[:, 0], strict=True):
            for token, row in zip(ask.tolist(), mask, strict=True):
                answered = layout.segments.place_N[token] == place
                seen.update({token: set(see[row == 0].tolist())} if answered else {})
                place += 1
    return seen


def test_in_the_single_row_a_member_sees_the_prefix_and_itself() -> None:
    layout = without_padding(whole([GROUP], pad=0), torch.float32)

    assert seen_by(layout) == {0: {0}, 1: {0, 1}, 2: {0, 1, 2}, 3: {0, 1, 2, 3}, 4: {0, 1, 4}}


def test_groups_of_different_length_follow_each_other_without_padding() -> None:
    layout = without_padding(whole([SHORTER, GROUP], pad=0), torch.float32)

    assert layout.positions_RT is not None
    assert layout.ids_RT.tolist() == [[1, 6, 7, 1, 2, 3, 4, 5]]
    assert layout.positions_RT.tolist() == [[0, 1, 1, 0, 1, 2, 3, 2]]
    assert layout.time_K.tolist() == [0, 0, 4, 5, 4]
    assert layout.member_K.tolist() == [0, 1, 2, 2, 3]


def test_groups_do_not_see_each_other() -> None:
    layout = without_padding(whole([SHORTER, GROUP], pad=0), torch.float32)

    seen = seen_by(layout)

    assert seen[2] == {0, 2}
    assert seen[7] == {3, 4, 7}


def test_every_asker_sees_something() -> None:
    layout = without_padding(whole([SHORTER, GROUP], pad=0), torch.float32)

    assert layout.segments is not None
    assert layout.segments.chunks
    assert all(bool((chunk.mask_S1QK == 0).any(-1).all()) for chunk in layout.segments.chunks)


def test_a_prompt_token_outside_the_prefix_travels_with_its_member() -> None:
    group = EncodedGroup("moved", (Encoded((1, 2, 3, 4), start=3), Encoded((1, 2, 9), start=1)))

    layout = without_padding(whole([group], pad=0), torch.float32)

    assert layout.ids_RT.tolist() == [[1, 2, 3, 4, 2, 9]]
    assert layout.target_K.tolist() == [4, 2, 9]
    assert layout.time_K.tolist() == [2, 0, 4]


def test_only_groups_of_several_members_with_a_common_token_can_share() -> None:
    single = EncodedGroup("row", GROUP.members[:1])
    strangers = EncodedGroup("pair", (Encoded((1, 2), start=1), Encoded((3, 4), start=1)))

    assert can_share(whole([GROUP, SHORTER], pad=0))
    assert not can_share(whole([single], pad=0))
    assert not can_share(whole([GROUP, strangers], pad=0))
