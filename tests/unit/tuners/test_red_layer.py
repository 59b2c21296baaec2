"""The edit on one layer: what it computes, in which dtype, and that a new one changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ConfigError
from alignlab.tuners.red import RedConfig, RedEdit, RedLayer, red_plus_targets
from tests.bits import assert_same_bits

Build = Callable[[str], PreTrainedModel]
Logits = Callable[[nn.Module], Tensor]
Train = Callable[[nn.Module], nn.Module]

FAMILIES = ("llama", "gpt2", "roberta", "t5")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_new_edit_changes_no_bit(build: Build, logits: Logits, family: str, dtype: torch.dtype) -> None:
    model = build(family).to(dtype)
    before = logits(model)

    tuned = get_peft_model(model, RedConfig())

    assert torch.equal(logits(tuned), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_new_red_plus_edit_changes_no_bit(build: Build, logits: Logits, family: str) -> None:
    model = build(family)
    before = logits(model)

    tuned = get_peft_model(model, RedConfig(target_modules=red_plus_targets(family)))

    assert torch.equal(logits(tuned), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_edit_moves_the_logits(build: Build, logits: Logits, train: Train, family: str) -> None:
    model = build(family)
    before = logits(model)

    tuned = train(get_peft_model(model, RedConfig()))

    assert (logits(tuned) - before).abs().max() > 0.1


@pytest.mark.parametrize(("edit", "learned"), [("both", {"scale", "shift"}), ("scale", {"scale"}), ("shift", {"shift"})])
def test_edit_learns_what_it_says(edit: str, learned: set[str]) -> None:
    layer = RedEdit(3, edit)

    assert {name for name, _ in layer.named_parameters()} == learned


@pytest.mark.parametrize("edit", ["both", "scale", "shift"])
def test_halves_agree_with_the_equation(edit: str) -> None:
    layer = RedEdit(2, edit)
    for parameter in layer.parameters():
        parameter.data = torch.tensor([2.0, -3.0])
    scale, shift = {"both": ((2, -3), (2, -3)), "scale": ((2, -3), (0, 0)), "shift": ((1, 1), (2, -3))}[edit]

    edited = layer(torch.tensor([5.0, 7.0]), 1.0)

    assert edited.tolist() == [5.0 * scale[0] + shift[0], 7.0 * scale[1] + shift[1]]


def test_unknown_edit_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown edit 'bias' for RED; known: both, scale, shift"):
        RedConfig(edit="bias")


def test_conv1d_is_edited_along_its_outputs() -> None:
    layer = RedLayer(Conv1D(6, 2), "default", RedConfig())

    assert layer.red_edit["default"].scale.shape == (6,)


@pytest.mark.parametrize("autocast", [True, False])
def test_vectors_are_float32_over_a_bfloat16_base(build: Build, autocast: bool) -> None:
    model = build("llama").to(torch.bfloat16)

    tuned = get_peft_model(model, RedConfig(), autocast_adapter_dtype=autocast)

    assert {value.dtype for name, value in tuned.named_parameters() if "red_edit" in name} == {torch.float32}


def test_vectors_keep_every_bit_through_a_later_cast(tuned: PeftModel) -> None:
    before = {name: value.clone() for name, value in tuned.named_parameters() if "red_edit" in name}

    tuned.to(torch.bfloat16)

    assert_same_bits({name: tuned.get_parameter(name) for name in before}, before)


def test_output_has_the_dtype_of_the_base(tuned: PeftModel, logits: Logits) -> None:
    assert logits(tuned.to(torch.bfloat16)).dtype == torch.bfloat16


def test_loaded_tensors_are_lifted_even_where_they_are_assigned() -> None:
    edit = RedEdit(2, "both")

    edit.load_state_dict({name: torch.ones(2).bfloat16() for name in ("scale", "shift")}, assign=True)

    assert {vector.dtype for vector in edit.parameters()} == {torch.float32}


def _scale_after_training(layer: RedLayer, steps: int = 100) -> Tensor:
    optimizer = torch.optim.AdamW(layer.red_edit.parameters(), lr=1e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(8, 16, generator=generator).bfloat16()
        ((layer(x) - 2 * layer.base_layer(x).detach() - 1) ** 2).float().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer.red_edit["default"].scale.detach()


def test_every_scale_moves_over_a_bfloat16_base() -> None:
    layer = RedLayer(nn.Linear(16, 16).bfloat16().requires_grad_(False), "default", RedConfig())

    scale = _scale_after_training(layer)

    assert bool((scale != 1).all())


def test_no_scale_moves_if_the_vectors_are_bfloat16() -> None:
    layer = RedLayer(nn.Linear(16, 16).bfloat16().requires_grad_(False), "default", RedConfig())
    for parameter in layer.red_edit.parameters():
        parameter.data = parameter.data.bfloat16()

    scale = _scale_after_training(layer)

    assert bool((scale == 1).all())
    assert bool((layer.red_edit["default"].shift != 0).all())


def test_adapters_are_applied_in_their_order(hand: RedLayer) -> None:
    hand.update_layer("second", RedConfig())
    hand.red_edit["second"].scale.data = torch.tensor([10.0, 10.0])
    hand.set_adapter(["default", "second"])
    forwards = hand(torch.tensor([[1.0, -2.0]]))

    hand.set_adapter(["second", "default"])

    assert forwards.tolist() == [[15.0, -50.0]]
    assert hand(torch.tensor([[1.0, -2.0]])).tolist() == [[6.0, -59.0]]
