"""Asking a model for classes, whatever the form: one per text, mixtures of them, and strengths between two."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from alignlab.errors import ConfigError, ControlError
from alignlab.models.sampling import Sampling
from alignlab.models.strength import ClassMixture
from tests.conftest import CODEC, backbone
from tests.contracts.controls import (
    CASES,
    HALVES,
    PAIRED,
    PHRASES,
    PLACEHOLDERS,
    PROMPTS,
    THREE,
    Case,
    batch_of,
    items,
    last_logits,
    learned,
    said,
    totals,
    totals_under,
    trained,
)

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_paired_case = pytest.mark.parametrize("case", PAIRED, ids=str)
one_of_each = pytest.mark.parametrize("case", [case for case in CASES if case.classes == THREE], ids=str)
both_ways = pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
GREEDY = Sampling(8, 0.0, 1.0)


@both_ways
@every_case
def test_texts_under_their_own_classes_are_what_each_class_says_alone(case: Case, temperature: float) -> None:
    policy = trained(case, backbone(case.backbone))
    asked = ["good", "bad", "none", case.classes[-1]]

    together = said(policy, asked, temperature)
    swapped = said(policy, asked[::-1], temperature)

    alone = {name: said(policy, name, temperature) for name in asked}
    assert together == [alone[name][row] for row, name in enumerate(asked)]
    assert swapped == [alone[name][row] for row, name in enumerate(reversed(asked))]
    assert len(set(map(tuple, alone.values()))) == len(alone)


@every_case
def test_a_mixture_of_weight_one_on_a_class_is_that_class(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    batch = batch_of(items(case.classes))
    mixtures = {name: {**dict.fromkeys(case.classes, 0.0), name: 1.0} for name in case.classes}

    found = {name: totals_under(policy, mixture, batch) for name, mixture in mixtures.items()}
    texts = {name: said(policy, mixture) for name, mixture in mixtures.items()}

    assert all(torch.equal(found[name], totals_under(policy, name, batch)) for name in case.classes)
    assert texts == {name: said(policy, name) for name in case.classes}


@every_case
def test_a_mixture_is_the_weighted_sum_of_the_logits_of_its_classes(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))

    mixed = last_logits(policy, {"good": 1.5, "bad": 0.25, "none": -0.75})

    good, bad, none = (last_logits(policy, name) for name in ("good", "bad", "none"))
    torch.testing.assert_close(mixed, 1.5 * good + 0.25 * bad - 0.75 * none, atol=1e-5, rtol=1e-5)


@every_case
def test_the_order_in_which_a_mixture_names_its_classes_does_not_matter(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))

    forwards = last_logits(policy, {"good": 0.7, "bad": 0.3})
    backwards = last_logits(policy, {"bad": 0.3, "good": 0.7})

    torch.testing.assert_close(forwards, backwards, atol=1e-6, rtol=1e-6)


@every_case
def test_the_order_in_which_a_control_lists_its_classes_does_not_matter(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    names = list(reversed(case.classes))
    phrases, placeholders = ([list(CODEC.prefix(PHRASES[n])) for n in names], [PLACEHOLDERS[n] for n in names])

    turned = trained(case, backbone(case.backbone), classes=names, phrases=phrases, placeholders=placeholders)
    for mine, theirs in zip(learned(turned), learned(policy), strict=True):
        mine.data = theirs.data.flip(0)

    for asked in (*case.classes, HALVES):
        torch.testing.assert_close(last_logits(turned, asked), last_logits(policy, asked), atol=1e-6, rtol=1e-6)


@every_case
def test_mixtures_side_by_side_equal_single_runs(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    asked: list[ClassMixture] = [HALVES, "bad", {"good": 2.0, "none": -1.0}, {"good": 2.0, "bad": -1.0}]

    together = said(policy, asked)

    assert together == [said(policy, each)[row] for row, each in enumerate(asked)]


@every_paired_case
def test_strengths_one_and_zero_are_the_first_and_the_second_class(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    batch = batch_of(items(case.classes))

    with policy.at(1.0):
        at_one = totals(policy, batch)
    with policy.at(0.0):
        at_zero = totals(policy, batch)

    assert torch.equal(at_one, totals_under(policy, "good", batch))
    assert torch.equal(at_zero, totals_under(policy, "bad", batch))
    assert policy.respond(PROMPTS, strength=0.0, sampling=GREEDY, seed=0) == said(policy, "bad")


@every_paired_case
def test_a_strength_between_is_the_mixture_of_both(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    batch = batch_of(items(case.classes))
    strengths = [-0.5, 0.25, 1.0, 2.0]

    with policy.at(torch.tensor([-0.5, 0.25, 1.0, 2.0] * 2)):
        found_G1 = totals(policy, batch)
    texts = policy.respond(PROMPTS, strength=strengths, sampling=GREEDY, seed=0)

    mixtures = [{"good": strength, "bad": 1 - strength} for strength in strengths]
    expected = [totals_under(policy, mixture, batch) for mixture in mixtures * 2]
    torch.testing.assert_close(found_G1, torch.stack([each[row] for row, each in enumerate(expected)]), atol=1e-5, rtol=1e-5)
    assert texts == said(policy, mixtures)


@one_of_each
def test_a_strength_between_three_classes_is_refused_and_names_them(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))

    with pytest.raises(ControlError, match="a strength mixes two classes, and here are good, bad, dull; ask for one by name"):
        policy.respond(PROMPTS, strength=0.5, sampling=GREEDY, seed=0)
    with pytest.raises(ControlError, match="here are good, bad, dull"):
        policy.at(1.0).__enter__()


@pytest.mark.parametrize("asked", ["god", {"good": 0.5, "god": 0.5}, ["good", "god", "bad", "bad"]], ids=str)
@one_of_each
def test_an_unknown_class_is_refused_with_the_known_ones(case: Case, asked: Any) -> None:
    policy = trained(case, backbone(case.backbone))

    with pytest.raises(ControlError, match=r"unknown class 'god'; did you mean good.*known: bad, dull, good, none"):
        said(policy, asked)


@pytest.mark.parametrize("weights", [{}, {"good": 0.7}, {"good": 0.7, "bad": 0.7}, {"good": math.nan, "bad": 1.0}], ids=str)
def test_weights_that_do_not_add_up_to_one_are_refused(weights: dict[str, float]) -> None:
    policy = trained(CASES[0], backbone("llama"))

    with pytest.raises(ControlError, match="must be numbers that add up to 1"):
        said(policy, weights)


def test_a_list_of_classes_of_another_length_than_the_prompts_is_refused() -> None:
    policy = trained(CASES[0], backbone("llama"))

    with pytest.raises(ControlError, match="3 classes were given for 4 prompts"):
        said(policy, ["good", "bad", "bad"])


@every_case
def test_a_text_has_the_room_that_the_longest_control_leaves(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    assert policy.tuner.controls is not None
    longest = max(len(prefix.ids) for prefix in policy.tuner.controls.prefixes)
    fitting = "a" * (128 - longest - GREEDY.max_new_tokens - 2)  # a context of 128; BOS in front, a line break behind

    answers = policy.respond([fitting], control=HALVES, sampling=GREEDY, seed=0)

    assert len(answers) == 1
    with pytest.raises(ConfigError, match=f"has room for {128 - longest - 8} before them"):
        policy.respond([f"{fitting}a"], sampling=GREEDY, seed=0, control="none")
