"""Merging: the edit folded into the weights answers as before, and comes out again bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ControlError, ModelError
from alignlab.tuners.red import RedConfig, RedLayer, red_plus_targets, strength
from tests.bits import assert_same_bits

Build = Callable[[str], PreTrainedModel]
Logits = Callable[[nn.Module], Tensor]
Train = Callable[[nn.Module], nn.Module]

FAMILIES = ("llama", "gpt2", "roberta", "t5")


def _far(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value where that is above 1."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1.0))


def _layer(base: nn.Module, scale: list[float], shift: list[float]) -> RedLayer:
    layer = RedLayer(base, "default", RedConfig())
    layer.red_edit["default"].scale.data = torch.tensor(scale)
    layer.red_edit["default"].shift.data = torch.tensor(shift)
    return layer


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_answers_as_unmerged(build: Build, logits: Logits, train: Train, family: str) -> None:
    tuned = train(get_peft_model(build(family), RedConfig()))
    before = logits(tuned)

    plain = tuned.merge_and_unload()

    assert _far(logits(plain), before) <= 1e-5
    assert not any(isinstance(module, RedLayer) for module in plain.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_merged_red_plus_answers_as_unmerged(build: Build, logits: Logits, train: Train, family: str) -> None:
    tuned = train(get_peft_model(build(family), RedConfig(target_modules=red_plus_targets(family))))
    before = logits(tuned)

    plain = tuned.merge_and_unload(safe_merge=True)

    assert _far(logits(plain), before) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_unmerging_restores_every_bit_past_a_scale_of_zero(build: Build, train: Train, family: str) -> None:
    tuned = train(get_peft_model(build(family), RedConfig()))
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    tuned.merge_adapter()

    tuned.unmerge_adapter()

    assert_same_bits(tuned.state_dict(), before)


def test_linear_by_hand() -> None:
    base = nn.Linear(2, 2)
    base.weight.data, base.bias.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0])

    _layer(base, [10.0, 0.0], [1.0, -1.0]).merge()

    assert base.weight.tolist() == [[10.0, 20.0], [0.0, 0.0]]
    assert base.bias.tolist() == [51.0, -1.0]


def test_conv1d_by_hand() -> None:
    base = Conv1D(2, 2)
    base.weight.data, base.bias.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0])

    _layer(base, [10.0, 0.0], [1.0, -1.0]).merge()

    assert base.weight.tolist() == [[10.0, 0.0], [30.0, 0.0]]
    assert base.bias.tolist() == [51.0, -1.0]


def test_base_without_bias_gets_one_and_loses_it_again() -> None:
    layer = _layer(nn.Linear(2, 2, bias=False), [1.0, 1.0], [1.0, -1.0])

    layer.merge()
    merged = layer.base_layer.bias.tolist()
    layer.unmerge()

    assert merged == [1.0, -1.0]
    assert layer.base_layer.bias is None


def test_scale_alone_makes_no_bias() -> None:
    layer = RedLayer(nn.Linear(2, 2, bias=False), "default", RedConfig(edit="scale"))

    layer.merge()

    assert layer.base_layer.bias is None


def test_half_precision_base_keeps_its_dtype() -> None:
    layer = _layer(nn.Linear(2, 2, bias=False).bfloat16(), [0.5, 3.0], [1.0, -1.0])

    layer.merge()

    assert {value.dtype for value in layer.base_layer.parameters()} == {torch.bfloat16}


def test_two_adapters_merge_in_their_order(build: Build, logits: Logits, train: Train) -> None:
    tuned = get_peft_model(build("llama"), RedConfig())
    tuned.add_adapter("second", RedConfig())
    train(tuned)
    tuned.base_model.set_adapter(["second", "default"])
    before = logits(tuned)

    plain = tuned.merge_and_unload()

    assert _far(logits(plain), before) <= 1e-5


def test_merge_takes_the_present_strength(build: Build, logits: Logits, train: Train) -> None:
    tuned = train(get_peft_model(build("llama"), RedConfig()))
    with strength(tuned, 0.5):
        before = logits(tuned)
        plain = tuned.merge_and_unload()

    assert _far(logits(plain), before) <= 1e-5


def test_dial_of_a_merged_edit_is_refused(build: Build, logits: Logits, train: Train) -> None:
    tuned = train(get_peft_model(build("llama"), RedConfig()))
    tuned.merge_adapter()

    with strength(tuned, 0.5), pytest.raises(ControlError, match=r"merged at strength 1\.0"):
        logits(tuned)


def test_one_strength_per_row_does_not_merge() -> None:
    layer = _layer(nn.Linear(2, 2), [1.0, 1.0], [0.0, 0.0])

    with strength(layer, torch.ones(2)), pytest.raises(ControlError, match="cannot be merged"):
        layer.merge()


def test_disabled_adapter_unmerges_first(build: Build, logits: Logits, train: Train) -> None:
    tuned = train(get_peft_model(build("llama"), RedConfig()))
    tuned.merge_adapter()

    with tuned.disable_adapter():
        disabled = logits(tuned)

    assert torch.equal(disabled, logits(build("llama")))


def test_safe_merge_refuses_numbers_that_are_not_finite() -> None:
    layer = _layer(nn.Linear(2, 2), [float("inf"), 1.0], [0.0, 0.0])
    before = layer.base_layer.weight.clone()

    with pytest.raises(ModelError, match="not finite"):
        layer.merge(safe_merge=True)

    assert torch.equal(layer.base_layer.weight, before)


def test_quantised_base_is_refused() -> None:
    layer = _layer(nn.Linear(2, 2), [1.0, 1.0], [0.0, 0.0])
    layer.base_layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)

    with pytest.raises(ModelError, match="full-precision backbone"):
        layer.merge()


def test_unmerging_what_is_not_merged_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="nothing to undo"):
        _layer(nn.Linear(2, 2), [1.0, 1.0], [0.0, 0.0]).unmerge()
