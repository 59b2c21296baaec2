"""The blocks in front of the first: a new one is the identity, what of it learns, and in which type."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.tuners.clm import ClmConfig, ClmLayer, block_at
from tests.bits import assert_same_bits

Build = Callable[[str], PreTrainedModel]
Logits = Callable[..., Tensor]
Train = Callable[[nn.Module], nn.Module]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
WRITES = {"llama": ("self_attn.o_proj.", "mlp.down_proj."), "gpt2": ("attn.c_proj.", "mlp.c_proj.")}
WRITES |= dict.fromkeys(("mistral", "qwen2", "qwen3"), WRITES["llama"])
IDS = torch.arange(4, 25).reshape(3, 7)

checkpointing = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
every_family = pytest.mark.parametrize("family", FAMILIES)


def layer_of(model: nn.Module) -> ClmLayer:
    """The first block with its new ones."""
    return next(module for module in model.modules() if isinstance(module, ClmLayer))


def step(tuned: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    """One step of likelihood on three rows."""
    optimizer.zero_grad()
    tuned(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()


def gradients(tuned: PeftModel) -> dict[str, Tensor]:
    """What one backward pass of likelihood leaves at each parameter that takes part."""
    tuned.zero_grad()
    tuned(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in tuned.named_parameters() if parameter.grad is not None}


def without_dropout(model: nn.Module) -> nn.Module:
    """The model with every dropout at 0."""
    for dropout in [module for module in model.modules() if isinstance(module, nn.Dropout)]:
        dropout.p = 0.0
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@every_family
def test_a_new_block_changes_no_bit(build: Build, logits: Logits, family: str, dtype: torch.dtype) -> None:
    model = build(family).to(dtype)
    before = logits(model)

    tuned = get_peft_model(model, ClmConfig())

    assert torch.equal(logits(tuned), before)


@pytest.mark.parametrize("blocks", [2, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_several_new_blocks_change_no_bit(build: Build, logits: Logits, family: str, blocks: int) -> None:
    before = logits(build(family))

    tuned = get_peft_model(build(family), ClmConfig(blocks=blocks))

    assert torch.equal(logits(tuned), before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_random_block_changes_the_answer(build: Build, logits: Logits, family: str) -> None:
    before = logits(build(family))

    tuned = get_peft_model(build(family), ClmConfig(start="random"))

    assert (logits(tuned) - before).abs().max() > 0.01


@every_family
def test_a_trained_block_moves_the_logits(build: Build, logits: Logits, train: Train, family: str) -> None:
    before = logits(build(family))

    tuned = train(get_peft_model(build(family), ClmConfig()))

    assert (logits(tuned) - before).abs().max() > 0.01


@every_family
def test_the_first_gradient_reaches_only_what_writes_into_the_stream(build: Build, family: str) -> None:
    tuned = get_peft_model(build(family), ClmConfig())

    found = gradients(tuned)

    block = {name for name, _ in tuned.named_parameters() if ".clm_blocks." in name}
    assert found.keys() == block
    assert {name for name in block if found[name].any()} == {
        name for name in block if any(write in name for write in WRITES[family])
    }


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
@every_family
def test_after_the_second_step_every_tensor_of_the_block_has_moved_and_nothing_else(
    build: Build, family: str, optimizer: type[torch.optim.Optimizer]
) -> None:
    tuned = get_peft_model(build(family), ClmConfig())
    before = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    learning = optimizer([p for p in tuned.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)

    step(tuned, learning)
    step(tuned, learning)

    moved = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if ".clm_blocks." in name}


def test_switched_off_a_trained_block_leaves_the_backbone(build: Build, logits: Logits, train: Train) -> None:
    before = logits(build("llama"))
    tuned = train(get_peft_model(build("llama"), ClmConfig()))

    with tuned.disable_adapter():
        off = logits(tuned)
    with block_at(tuned, 0.0):
        at_zero = logits(tuned)

    assert torch.equal(off, before)
    assert torch.equal(at_zero, before)


def test_no_weight_of_the_backbone_is_held_twice(build: Build) -> None:
    model = build("llama")
    own = {parameter.data_ptr(): parameter.numel() for parameter in model.parameters()}
    block = sum(parameter.numel() for parameter in model.model.layers[0].parameters())

    tuned = get_peft_model(model, ClmConfig())

    held = {parameter.data_ptr(): parameter.numel() for parameter in tuned.parameters()}
    assert own.items() <= held.items()
    assert sum(held.values()) == sum(own.values()) + block


@checkpointing
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_no_gradient(build: Build, train: Train, family: str) -> None:
    tuned = without_dropout(train(get_peft_model(build(family), ClmConfig(blocks=2)))).train()
    plain = gradients(tuned)

    tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = gradients(tuned)

    torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-6)


@checkpointing
def test_a_checkpointed_block_is_computed_again_for_the_gradient(build: Build) -> None:
    tuned = get_peft_model(build("llama"), ClmConfig()).train()
    calls: list[int] = []
    layer_of(tuned).clm_blocks["default"].blocks[0].self_attn.register_forward_hook(lambda *_: calls.append(1))

    tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients(tuned)

    assert len(calls) == 2


def test_the_block_is_float32_over_a_bfloat16_backbone_and_answers_in_bfloat16(build: Build, logits: Logits) -> None:
    tuned = get_peft_model(build("llama").to(torch.bfloat16), ClmConfig(), autocast_adapter_dtype=False)

    kinds = {parameter.dtype for name, parameter in tuned.named_parameters() if ".clm_blocks." in name}

    assert kinds == {torch.float32}
    assert logits(tuned).dtype == torch.bfloat16


def test_the_block_keeps_every_bit_through_a_later_cast(build: Build, train: Train) -> None:
    tuned = train(get_peft_model(build("llama"), ClmConfig()))
    before = {name: value.clone() for name, value in tuned.named_parameters() if ".clm_blocks." in name}

    tuned.to(torch.bfloat16)

    assert_same_bits({name: tuned.get_parameter(name) for name in before}, before)


def test_loaded_tensors_are_lifted_even_where_they_are_assigned(build: Build) -> None:
    blocks = layer_of(get_peft_model(build("llama"), ClmConfig())).clm_blocks["default"]
    half = {name: tensor.bfloat16() for name, tensor in blocks.state_dict().items()}

    blocks.load_state_dict(half, assign=True)

    assert {parameter.dtype for parameter in blocks.parameters()} == {torch.float32}


def test_the_copy_reads_the_config_of_the_model(build: Build) -> None:
    tuned = get_peft_model(build("llama"), ClmConfig())

    tuned.base_model.model.set_attn_implementation("eager")

    (block,) = layer_of(tuned).clm_blocks["default"].blocks
    assert block.self_attn.config is tuned.base_model.model.config
    assert block.self_attn.config._attn_implementation == "eager"


def test_new_blocks_are_numbered_behind_those_of_the_backbone_and_of_other_adapters(build: Build) -> None:
    tuned = get_peft_model(build("llama"), ClmConfig(blocks=2))  # the backbone has blocks 0 and 1

    tuned.add_adapter("second", ClmConfig())

    numbers = {name: [block.self_attn.layer_idx for block in made.blocks] for name, made in layer_of(tuned).clm_blocks.items()}
    assert numbers == {"default": [2, 3], "second": [4]}


def test_asked_for_anything_else_the_layer_is_the_block_it_stands_in_front_of(build: Build) -> None:
    layer = layer_of(get_peft_model(build("llama"), ClmConfig()))

    assert layer.self_attn is layer.base_layer.self_attn
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = layer.nothing_like_this
