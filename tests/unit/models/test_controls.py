"""Classes as a model is asked for them: prefixes put into texts, and classes as weighted passes. All numbers by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from alignlab.data.batching import whole
from alignlab.errors import ControlError
from alignlab.models.strength import WITHOUT, Controls, Prefix, WeightedPass, insert_prefix_rows, insert_prefixes
from alignlab.records import Batch, Encoded, EncodedGroup

BOS, PAD, GOOD, BAD = 1, 0, 90, 80
CONTROLS = Controls(("good", "bad"), (Prefix((GOOD, GOOD), 1), Prefix((BAD,), 1)), reserved=(GOOD, BAD))
THREE = Controls(("good", "bad", "dull"), (Prefix(), Prefix(), Prefix()))


def one(*ids: int, start: int, control: str | None = None) -> EncodedGroup:
    return EncodedGroup("row", (Encoded(ids, start, control=control),))


def pair(
    first: tuple[int, ...], second: tuple[int, ...], *, start: int, controls: tuple[str, str] | None = None
) -> EncodedGroup:
    of = controls or (None, None)
    return EncodedGroup("pair", (Encoded(first, start, control=of[0]), Encoded(second, start, control=of[1])))


def batch(*groups: EncodedGroup) -> Batch:
    return whole(groups, PAD)


def real(made: Batch) -> list[list[int]]:
    """The ids of each member, padding left out."""
    rows = made.ids_GMT.reshape(-1, made.ids_GMT.shape[2]).tolist()
    return [row[:length] for row, length in zip(rows, made.length_GM.flatten().tolist(), strict=True)]


def plainly(passes: tuple[WeightedPass, ...]) -> list[tuple[Any, Any, Prefix]]:
    """Passes with lists in place of tensors."""
    return [(_listed(weighted.weight), _listed(weighted.setting), weighted.prefix) for weighted in passes]


def _listed(value: float | Tensor) -> Any:
    return torch.as_tensor(value).tolist()


def test_a_lead_stands_behind_bos_and_moves_what_follows() -> None:
    found = insert_prefixes(batch(one(BOS, 5, 6, 7, 8, start=3)), [Prefix((GOOD, GOOD), 1)])

    assert real(found) == [[BOS, GOOD, GOOD, 5, 6, 7, 8]]
    assert (found.length_GM.tolist(), found.start_GM.tolist(), found.prefix_G.tolist()) == ([[7]], [[5]], [5])


def test_a_lead_behind_nothing_stands_in_front_of_bos() -> None:
    found = insert_prefixes(batch(one(BOS, 5, 6, 7, 8, start=3)), [Prefix((GOOD, 91), 0)])

    assert real(found) == [[GOOD, 91, BOS, 5, 6, 7, 8]]
    assert (found.length_GM.tolist(), found.start_GM.tolist(), found.prefix_G.tolist()) == ([[7]], [[5]], [5])


def test_leads_of_different_lengths_stand_in_one_batch() -> None:
    texts = [one(BOS, 5, 6, 7, start=2), one(BOS, 9, start=1), one(BOS, 4, 3, start=2)]

    found = insert_prefixes(batch(*texts), [Prefix((BAD,), 1), Prefix((GOOD, 91, 92), 1), Prefix((), 1)])

    assert real(found) == [[BOS, BAD, 5, 6, 7], [BOS, GOOD, 91, 92, 9], [BOS, 4, 3]]
    assert found.length_GM.tolist() == [[5], [5], [3]]
    assert found.start_GM.tolist() == [[3], [4], [2]]


def test_no_placeholder_stands_outside_its_lead() -> None:
    texts = [one(BOS, 5, 6, 7, 8, start=2), one(BOS, 9, start=1)]

    found = insert_prefixes(batch(*texts), [Prefix((BAD,), 1), Prefix((GOOD, GOOD, GOOD), 1)])

    assert ((found.ids_GMT == BAD).sum(-1).tolist(), (found.ids_GMT == GOOD).sum(-1).tolist()) == ([[1], [0]], [[0], [3]])


def test_without_leads_a_batch_is_itself() -> None:
    given = batch(one(BOS, 5, 6, start=2))

    assert insert_prefixes(given, [Prefix()]) is given


def test_members_with_the_same_lead_share_it_in_their_prefix() -> None:
    given = batch(pair((BOS, 5, 6, 7), (BOS, 5, 6, 8, 9), start=3))

    found = insert_prefixes(given, [Prefix((GOOD, GOOD), 1)] * 2)

    assert real(found) == [[BOS, GOOD, GOOD, 5, 6, 7], [BOS, GOOD, GOOD, 5, 6, 8, 9]]
    assert (given.prefix_G.tolist(), found.prefix_G.tolist()) == ([3], [5])


@pytest.mark.parametrize(("behind", "prefix"), [(1, 1), (0, 0)])
def test_members_with_different_leads_share_what_stands_in_front_of_them(behind: int, prefix: int) -> None:
    given = batch(pair((BOS, 5, 6, 7), (BOS, 5, 6, 8, 9), start=3))

    found = insert_prefixes(given, [Prefix((GOOD,), behind), Prefix((BAD,), behind)])

    assert found.prefix_G.tolist() == [prefix]


def test_groups_share_or_not_each_for_itself() -> None:
    given = batch(pair((BOS, 5, 6), (BOS, 5, 8), start=2), pair((BOS, 4, 6), (BOS, 4, 8), start=2))

    found = insert_prefixes(given, [Prefix((GOOD,), 1), Prefix((GOOD,), 1), Prefix((GOOD,), 1), Prefix((BAD,), 1)])

    assert found.prefix_G.tolist() == [3, 1]
    assert real(found) == [[BOS, GOOD, 5, 6], [BOS, GOOD, 5, 8], [BOS, GOOD, 4, 6], [BOS, BAD, 4, 8]]


def test_each_member_of_a_batch_gets_the_lead_and_the_number_of_its_class() -> None:
    given = batch(
        pair((BOS, 5, 6), (BOS, 5, 8), start=2, controls=("bad", "good")),
        pair((BOS, 4, 6), (BOS, 4, 8), start=2, controls=("good", "good")),
    )

    found, numbers_R = CONTROLS.insert_prefixes(given)

    assert real(found) == [[BOS, BAD, 5, 6], [BOS, GOOD, GOOD, 5, 8], [BOS, GOOD, GOOD, 4, 6], [BOS, GOOD, GOOD, 4, 8]]
    assert numbers_R.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_a_member_of_an_unknown_class_is_refused() -> None:
    given = batch(one(BOS, 5, 6, start=2, control="god"))

    with pytest.raises(ControlError, match="unknown class 'god'"):
        CONTROLS.insert_prefixes(given)


def test_rows_padded_on_the_left_stay_so() -> None:
    ids_RT = torch.tensor([[PAD, PAD, BOS, 5], [BOS, 7, 8, 9]])
    mask_RT = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])

    ids, mask = insert_prefix_rows(ids_RT, mask_RT, [Prefix((GOOD, GOOD), 1), Prefix((BAD,), 1)])

    assert ids.tolist() == [[BOS, BOS, GOOD, GOOD, 5], [BOS, BAD, 7, 8, 9]]
    assert mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_rows_without_a_lead_and_in_front_of_bos() -> None:
    ids_RT = torch.tensor([[PAD, BOS, 5], [BOS, 7, 8]])
    mask_RT = torch.tensor([[0, 1, 1], [1, 1, 1]])

    ids, mask = insert_prefix_rows(ids_RT, mask_RT, [Prefix((GOOD, 91, 92), 0), Prefix()])

    assert ids.tolist() == [[GOOD, 91, 92, BOS, 5], [BOS, BOS, BOS, 7, 8]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("control", "weights"),
    [
        ("good", [{"good": 1.0}] * 2),
        ("none", [{"none": 1.0}] * 2),
        ({"good": 1.5, "bad": -0.5}, [{"good": 1.5, "bad": -0.5}] * 2),
        (["bad", {"good": 0.5, "none": 0.5}], [{"bad": 1.0}, {"good": 0.5, "none": 0.5}]),
        (("bad", "good"), [{"bad": 1.0}, {"good": 1.0}]),
    ],
    ids=str,
)
def test_what_is_asked_becomes_weights_of_classes_for_each_text(control: Any, weights: list[dict[str, float]]) -> None:
    assert CONTROLS.mixtures(control, 2) == weights


@pytest.mark.parametrize(
    ("control", "sentence"),
    [
        ("god", "unknown class 'god'; did you mean good[?] known: bad, good, none"),
        ({"god": 0.0, "bad": 1.0}, "unknown class 'god'"),
        (["good"], "1 classes were given for 2 prompts; give one, or one per prompt"),
        ({"good": 0.5, "bad": 0.6}, "must be numbers that add up to 1"),
        ({}, "must be numbers that add up to 1"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(control: Any, sentence: str) -> None:
    with pytest.raises(ControlError, match=sentence):
        CONTROLS.mixtures(control, 2)


def test_texts_that_ask_for_the_same_run_in_passes_of_one_weight() -> None:
    passes = CONTROLS.passes([{"bad": 0.25, "good": 1.75, "none": -1.0}] * 3)

    good, bad = CONTROLS.prefixes
    assert plainly(passes) == [(1.75, 0.0, good), (0.25, 1.0, bad), (-1.0, WITHOUT, Prefix())]


def test_texts_that_ask_for_different_classes_have_a_weight_each() -> None:
    passes = CONTROLS.passes([{"bad": 1.0}, {"good": 0.5, "none": 0.5}])

    good, bad = CONTROLS.prefixes
    assert plainly(passes) == [([0.0, 0.5], 0.0, good), ([1.0, 0.0], 1.0, bad), ([0.0, 0.5], WITHOUT, Prefix())]


def test_a_class_of_weight_zero_has_no_pass() -> None:
    passes = CONTROLS.passes([{"good": 0.0, "bad": 1.0}])

    assert plainly(passes) == [(1.0, 1.0, CONTROLS.prefixes[1])]


@pytest.mark.parametrize(("strength", "expected"), [(1.0, [(1.0, 0.0)]), (0.0, [(1.0, 1.0)]), (1.5, [(1.5, 0.0), (-0.5, 1.0)])])
def test_a_strength_is_the_weight_of_the_first_class_and_the_rest_is_the_seconds(
    strength: float, expected: list[tuple[float, float]]
) -> None:
    passes = CONTROLS.at_strength(strength)

    assert [(weighted.weight, weighted.setting) for weighted in passes] == expected


def test_strengths_that_differ_run_in_two_passes() -> None:
    passes = CONTROLS.at_strength(torch.tensor([0.0, 1.0, 2.0]))

    good, bad = CONTROLS.prefixes
    assert plainly(passes) == [([0.0, 1.0, 2.0], 0.0, good), ([1.0, 0.0, -1.0], 1.0, bad)]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_between_three_classes_there_is_no_strength(strength: float) -> None:
    with pytest.raises(ControlError, match="a strength mixes two classes, and here are good, bad, dull"):
        THREE.at_strength(strength)


def test_the_longest_lead_is_what_a_text_has_to_leave_room_for() -> None:
    assert (CONTROLS.inserted.tokens, THREE.inserted.tokens) == (2, 0)
