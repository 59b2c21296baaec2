"""The edit on one layer, and its strength dial."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.tuners.red import RedConfig, RedEdit, RedLayer, red_plus_targets, red_targets, strength
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

Build = Callable[[str], PreTrainedModel]
Logits = Callable[[nn.Module], Tensor]
Train = Callable[[nn.Module], nn.Module]

FAMILIES = ("llama", "gpt2", "roberta", "t5")


@pytest.fixture
def tuned(build: Build, train: Train) -> PeftModel:
    """A Llama with an edit that looks trained."""
    return train(get_peft_model(build("llama"), RedConfig()))


@pytest.fixture
def hand() -> RedLayer:
    """d = 2, a base that returns its input, s = (0.5, 3), l = (1, 1)."""
    base = nn.Linear(2, 2, bias=False)
    base.weight.data = torch.eye(2)
    layer = RedLayer(base, "default", RedConfig())
    layer.red_edit["default"].scale.data = torch.tensor([0.5, 3.0])
    layer.red_edit["default"].shift.data = torch.tensor([1.0, 1.0])
    return layer


@pytest.mark.parametrize("at, expected", [(1.0, (1.5, -5.0)), (0.5, (1.25, -3.5)), (0.0, (1.0, -2.0)), (2.0, (2.0, -8.0))])
def test_hand_example(hand: RedLayer, at: float, expected: tuple[float, float]) -> None:
    with strength(hand, at):
        edited = hand(torch.tensor([[1.0, -2.0]]))

    assert edited.tolist() == [list(expected)]


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
    with strength(tuned, torch.ones(2)), pytest.raises(ControlError, match="2 strengths were given for a batch of 3 rows"):
        logits(tuned)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.ones(2, 2), torch.tensor([1.0, float("nan")])])
def test_strength_that_means_nothing_is_refused(hand: RedLayer, value: float | Tensor) -> None:
    with pytest.raises(ControlError, match="finite"), strength(hand, value):
        pass


def test_strength_without_an_edit_is_refused() -> None:
    with pytest.raises(ControlError, match="carries no RED edit"), strength(nn.Linear(2, 2), 1.0):
        pass


@pytest.mark.parametrize("edit, learned", [("both", {"scale", "shift"}), ("scale", {"scale"}), ("shift", {"shift"})])
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

    assert all(torch.equal(tuned.get_parameter(name), value) for name, value in before.items())


def test_output_has_the_dtype_of_the_base(tuned: PeftModel, logits: Logits) -> None:
    assert logits(tuned.to(torch.bfloat16)).dtype == torch.bfloat16


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


def test_bare_suffix_of_gpt2_would_match_twice(build: Build) -> None:
    by_suffix = get_peft_model(build("gpt2"), RedConfig(target_modules=["c_proj"])).targeted_module_names

    by_table = get_peft_model(build("gpt2"), RedConfig()).targeted_module_names

    assert by_table == ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]
    assert len(by_suffix) == 4


def test_backbone_without_a_head_is_matched_too(build: Build) -> None:
    bodies = [build("llama").model, build("gpt2").transformer, build("roberta").roberta, build("t5").encoder]

    counts = [len(get_peft_model(body, RedConfig()).targeted_module_names) for body in bodies]

    assert counts == [2, 2, 2, 2]


@pytest.mark.parametrize("layers", [1, [1]])
def test_chosen_blocks_work_with_the_table(build: Build, layers: int | list[int]) -> None:
    tuned = get_peft_model(build("llama"), RedConfig(layers_to_transform=layers))

    assert tuned.targeted_module_names == ["model.layers.1.mlp.down_proj"]


def test_chosen_blocks_of_t5_are_blocks_and_not_sub_layers(build: Build) -> None:
    tuned = get_peft_model(build("t5"), RedConfig(layers_to_transform=[0], layers_pattern="block"))

    assert tuned.targeted_module_names == [
        "encoder.block.0.layer.1.DenseReluDense.wo",
        "decoder.block.0.layer.2.DenseReluDense.wo",
    ]


def test_excluded_modules_are_left_alone(build: Build) -> None:
    tuned = get_peft_model(build("llama"), RedConfig(exclude_modules=["layers.0.mlp.down_proj"]))

    assert tuned.targeted_module_names == ["model.layers.1.mlp.down_proj"]


def test_unknown_model_type_says_how_to_name_the_layers() -> None:
    with pytest.raises(ModelError, match=r"'mamba'.*pass target_modules"):
        red_targets("mamba")


def test_target_that_matches_nothing_lists_near_names(build: Build) -> None:
    with pytest.raises(ModelError, match=r"nearest here: mlp\.down_proj"):
        get_peft_model(build("llama"), RedConfig(target_modules=["mlp.dwon_proj"]))


def test_layer_that_is_not_linear_is_refused(build: Build) -> None:
    with pytest.raises(ModelError, match="transformer.wte is a Embedding"):
        get_peft_model(build("gpt2"), RedConfig(target_modules=["wte"]))


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


def test_gpt2_is_a_conv1d_family(build: Build) -> None:
    model = build("gpt2")

    assert isinstance(model, GPT2LMHeadModel)
    assert isinstance(model.transformer.h[0].mlp.c_proj, Conv1D)
