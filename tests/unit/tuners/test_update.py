"""A LoRA that stands beside a tuner for a while and then becomes part of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from alignlab.errors import ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from alignlab.tuners.lora import Update, UpdateShape
from tests.bits import assert_same_bits
from tests.conftest import backbone
from tests.unit.conftest import attached, batch_of, learned, plain

every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])
RANK, ALPHA = 2, 6.0
SHAPE = UpdateShape(RANK, ALPHA, dropout=0.0)
# Rank times in plus out: queries 32 to 32 and values 32 to 16, or GPT-2's c_attn 32 to 96, in three blocks.
LEARNED = {"llama": 3 * RANK * ((32 + 32) + (32 + 16)), "gpt2": 3 * RANK * (32 + 96)}
TARGETS = {"llama": ("self_attn.q_proj", "self_attn.v_proj"), "gpt2": ("attn.c_attn",)}
IDS = torch.arange(3, 19).reshape(2, 8)


def standing(made: Backbone, *, spread: float = 0.1) -> Update:
    """An update in a model, its numbers moved away from the start."""
    update = Update(made.model, SHAPE)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in update.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return update


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def put_in(update: Update) -> None:
    """Makes it part of the weights."""
    for parameter, value in update.updated():
        parameter.data = value


def tuned(policy: Policy) -> Tensor:
    """Log-probabilities of some pairs with the tuner at 1."""
    with torch.no_grad():
        return policy.logprobs(batch_of(policy.backbone)).total_GM


@every_backbone
def test_it_learns_a_lora_on_queries_and_values_of_every_block(kind: str) -> None:
    update = standing(backbone(kind))

    assert sum(parameter.numel() for parameter in update.parameters()) == LEARNED[kind]


@every_backbone
def test_a_new_one_changes_nothing(kind: str) -> None:
    made = backbone(kind)
    before = logits(made.model)

    standing(made, spread=0.0)

    assert torch.equal(logits(made.model), before)


@every_backbone
def test_what_it_makes_of_the_weights_is_what_it_was_while_it_stood(kind: str) -> None:
    made = backbone(kind)
    before = logits(made.model)
    update = standing(made)
    while_it_stood = logits(made.model)

    put_in(update)
    update.remove()

    torch.testing.assert_close(logits(made.model), while_it_stood, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(while_it_stood, before, atol=1e-2)


@every_backbone
def test_a_weight_with_it_is_the_weight_plus_alpha_by_rank_times_b_a(kind: str, tmp_path: Path) -> None:
    made = backbone(kind)
    own = dict(made.model.named_parameters())
    update = standing(made)

    update.save(tmp_path)
    found = {id(parameter): value for parameter, value in update.updated()}

    factors = load_file(tmp_path / "adapter_model.safetensors")
    targets = [name for name in own if name.endswith(tuple(f"{target}.weight" for target in TARGETS[kind]))]
    assert found.keys() == {id(own[name]) for name in targets}
    for name in targets:
        a, b = (factors[f"base_model.model.{name.removesuffix('weight')}lora_{letter}.weight"] for letter in "AB")
        delta = ALPHA / RANK * (b @ a)
        expected = own[name] + (delta.T if kind == "gpt2" else delta)  # GPT-2 stores in x out
        torch.testing.assert_close(found[id(own[name])], expected, atol=1e-6, rtol=1e-6)


@every_backbone
def test_once_removed_the_model_has_the_bits_that_it_had(kind: str) -> None:
    made = backbone(kind)
    before = logits(made.model)
    required = [parameter.requires_grad for parameter in made.model.parameters()]

    standing(made).remove()

    assert torch.equal(logits(made.model), before)
    assert [parameter.requires_grad for parameter in made.model.parameters()] == required
    assert [name for name, _ in made.model.named_parameters()] == [name for name, _ in backbone(kind).model.named_parameters()]


@every_backbone
def test_it_is_stored_as_peft_stores_an_adapter(kind: str, tmp_path: Path) -> None:
    made = backbone(kind)
    update = standing(made)

    update.save(tmp_path)

    loaded = PeftModel.from_pretrained(backbone(kind).model, str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(made.model), atol=1e-6, rtol=1e-6)


def test_it_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    made, other = backbone("llama"), backbone("llama")
    standing(made).save(tmp_path)
    fresh = standing(other, spread=0.5)

    fresh.load(tmp_path)

    assert torch.equal(logits(other.model), logits(made.model))


def test_the_file_of_another_adapter_is_refused(tmp_path: Path) -> None:
    standing(backbone("gpt2")).save(tmp_path)
    update = standing(backbone("llama"))

    with pytest.raises(ModelError, match="holds other tensors than are learned here"):
        update.load(tmp_path)


@pytest.mark.parametrize("tuner", ["lora", "red", "full"])
def test_while_it_stands_a_trained_lora_is_aside_and_afterwards_every_tuner_is_back(tuner: str) -> None:
    policy = attached(tuner, backbone("llama"))
    before, parameters = tuned(policy), learned(policy)
    required = {name: parameter.requires_grad for name, parameter in policy.model.named_parameters()}

    update = standing(policy.backbone)
    update.remove()

    assert torch.equal(tuned(policy), before)
    assert [id(parameter) for parameter in learned(policy)] == [id(parameter) for parameter in parameters]
    assert {name: parameter.requires_grad for name, parameter in policy.model.named_parameters()} == required


def test_a_lora_takes_no_part_while_an_update_stands() -> None:
    policy = attached("lora", backbone("llama"))

    standing(policy.backbone, spread=0.0)

    torch.testing.assert_close(tuned(policy), tuned(plain(backbone("llama"))), atol=0, rtol=0)


def test_what_a_lora_saves_is_the_same_before_and_after_an_update(tmp_path: Path) -> None:
    policy = attached("lora", backbone("llama"))
    policy.tuner.save(tmp_path / "before")  # type: ignore[attr-defined]
    update = standing(policy.backbone)

    update.remove()
    policy.tuner.save(tmp_path / "after")  # type: ignore[attr-defined]

    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "after"))
    assert_same_bits(second, first)
    assert {path.name for path in (tmp_path / "after").iterdir()} == {path.name for path in (tmp_path / "before").iterdir()}


def test_on_a_backbone_in_half_precision_it_learns_in_single(tmp_path: Path) -> None:
    made = backbone("llama")
    made.model.to(torch.bfloat16)  # type: ignore[arg-type]

    update = standing(made)
    update.save(tmp_path)

    assert {parameter.dtype for parameter in update.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}
    assert {value.dtype for _, value in update.updated()} == {torch.bfloat16}
    assert logits(made.model).isfinite().all()
