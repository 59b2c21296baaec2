"""The strength dial: 0 is the backbone and 1 the trained model bit for bit, one strength per row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ControlError
from alignlab.tuners.red import RedConfig, RedLayer, strength

Build = Callable[[str], PreTrainedModel]
Logits = Callable[[nn.Module], Tensor]
Train = Callable[[nn.Module], nn.Module]

FAMILIES = ("llama", "gpt2", "roberta", "t5")


@pytest.mark.parametrize(("at", "expected"), [(1.0, (1.5, -5.0)), (0.5, (1.25, -3.5)), (0.0, (1.0, -2.0)), (2.0, (2.0, -8.0))])
def test_hand_example(hand: RedLayer, at: float, expected: tuple[float, float]) -> None:
    with strength(hand, at):
        edited = hand(torch.tensor([[1.0, -2.0]]))

    assert edited.tolist() == [list(expected)]


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_zero_and_disabled_are_the_backbone(build: Build, logits: Logits, train: Train, family: str) -> None:
    before = logits(build(family))
    tuned = train(get_peft_model(build(family), RedConfig()))

    with strength(tuned, 0.0):
        at_zero = logits(tuned)
    with tuned.disable_adapter():
        disabled = logits(tuned)

    assert torch.equal(at_zero, before)
    assert torch.equal(disabled, before)


def test_strength_one_is_the_trained_model(tuned: PeftModel, logits: Logits) -> None:
    trained = logits(tuned)

    with strength(tuned, 1.0):
        at_one = logits(tuned)

    assert torch.equal(at_one, trained)


def test_rows_keep_their_own_strength(tuned: PeftModel, logits: Logits) -> None:
    with strength(tuned, 0.0):
        plain = logits(tuned)
    trained = logits(tuned)
    with strength(tuned, 0.3):
        between = logits(tuned)

    with strength(tuned, torch.tensor([1.0, 0.0, 0.3])):
        mixed = logits(tuned)

    assert torch.equal(mixed[0], trained[0])
    assert torch.equal(mixed[1], plain[1])
    assert torch.equal(mixed[2], between[2])


def test_row_at_zero_keeps_the_sign_of_a_zero(hand: RedLayer) -> None:
    hand.base_layer.forward = torch.clone

    with strength(hand, torch.tensor([0.0, 1.0])):
        edited = hand(torch.tensor([[-0.0, 1.0], [1.0, 1.0]]))

    assert torch.signbit(edited[0, 0])


def test_gradients_reach_only_rows_that_are_edited(hand: RedLayer) -> None:
    with strength(hand, torch.tensor([0.0, 1.0])):
        hand(torch.tensor([[5.0, 7.0], [1.0, 2.0]])).sum().backward()

    assert hand.red_edit["default"].scale.grad.tolist() == [1.0, 2.0]
    assert hand.red_edit["default"].shift.grad.tolist() == [1.0, 1.0]


def test_strength_is_restored_after_an_error(tuned: PeftModel) -> None:
    with pytest.raises(RuntimeError), strength(tuned, 0.5), strength(tuned, torch.ones(3)):
        raise RuntimeError

    assert {layer.strength for layer in tuned.modules() if isinstance(layer, RedLayer)} == {1.0}


def test_wrong_number_of_rows_is_refused(tuned: PeftModel, logits: Logits) -> None:
    with (
        strength(tuned, torch.ones(2)),
        pytest.raises(ControlError, match="2 strengths were given for a batch of 3 rows"),
    ):
        logits(tuned)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.ones(2, 2), torch.tensor([1.0, float("nan")])])
def test_strength_that_means_nothing_is_refused(hand: RedLayer, value: float | Tensor) -> None:
    with pytest.raises(ControlError, match="finite"), strength(hand, value):
        pass


def test_strength_without_an_edit_is_refused() -> None:
    with pytest.raises(ControlError, match="carries no RED edit"), strength(nn.Linear(2, 2), 1.0):
        pass


def test_generation_takes_one_strength_per_row(build: Build, train: Train) -> None:
    tuned = train(get_peft_model(build("llama"), RedConfig()))
    prompt = torch.tensor([[5, 6, 7], [5, 6, 7]])
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    plain = build("llama").generate(input_ids=prompt, **settings)
    trained = tuned.generate(input_ids=prompt, **settings)

    with strength(tuned, torch.tensor([0.0, 1.0])):
        mixed = tuned.generate(input_ids=prompt, **settings)

    assert torch.equal(mixed[0], plain[0])
    assert torch.equal(mixed[1], trained[1])
    assert not torch.equal(plain[0], trained[0])
