"""RED's halves against two independent implementations of peft: IA3 for the scale, BEFT for the shift."""

from __future__ import annotations

import pytest
import torch
from peft import BeftConfig, IA3Config, PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from alignlab.tuners.red import RedConfig

pytestmark = pytest.mark.parity

IDS = torch.arange(4, 25).reshape(3, 7)


def _llama(mlp_bias: bool = False) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=96,
        initializer_range=0.2,
        mlp_bias=mlp_bias,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def _with_vectors(config: PeftConfig, mean: float, mlp_bias: bool = False) -> tuple[PeftModel, list[Tensor]]:
    """A model whose learned vectors, in the order of the blocks, are drawn with the spread of a trained edit."""
    model = get_peft_model(_llama(mlp_bias), config)
    vectors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(2)
    for vector in vectors:
        vector.data = (mean + 0.6 * torch.randn(32, generator=generator)).view(vector.shape)
    return model, vectors


def _loss_and_logits(model: PeftModel) -> Tensor:
    output = model(input_ids=IDS, labels=IDS)
    output.loss.backward()
    return output.logits.detach()


def test_scale_half_is_ia3_on_the_output() -> None:
    red, scales = _with_vectors(RedConfig(edit="scale"), 1.0)
    ia3, oracle = _with_vectors(IA3Config(target_modules=["down_proj"], feedforward_modules=[]), 1.0)

    difference = (_loss_and_logits(red) - _loss_and_logits(ia3)).abs().max()

    assert difference <= 1e-6
    assert len(scales) == len(oracle) == 2
    for ours, theirs in zip(scales, oracle, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad.flatten(), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term:UserWarning")
def test_shift_half_is_beft() -> None:
    red, shifts = _with_vectors(RedConfig(edit="shift"), 0.0)
    beft, oracle = _with_vectors(BeftConfig(target_modules=["down_proj"]), 0.0)

    difference = (_loss_and_logits(red) - _loss_and_logits(beft)).abs().max()

    assert difference <= 1e-6
    for ours, theirs in zip(shifts, oracle, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad.flatten(), rtol=1e-6, atol=1e-6)


def test_shift_half_is_a_trained_bias() -> None:
    red, shifts = _with_vectors(RedConfig(edit="shift"), 0.0)
    plain = _llama(mlp_bias=True)
    plain.load_state_dict(_llama().state_dict(), strict=False)
    biases = [layer.mlp.down_proj.bias for layer in plain.model.layers]
    for bias, shift in zip(biases, shifts, strict=True):
        bias.data = shift.data.clone()

    difference = (_loss_and_logits(red) - _loss_and_logits(plain)).abs().max()

    assert difference <= 1e-6
    for bias, shift in zip(biases, shifts, strict=True):
        torch.testing.assert_close(shift.grad, bias.grad, rtol=1e-6, atol=1e-6)


def test_whole_edit_is_ia3_then_beft() -> None:
    red, _ = _with_vectors(RedConfig(), 1.0)
    layers = [layer.mlp.down_proj for layer in red.base_model.model.model.layers]
    plain = _llama(mlp_bias=True)
    plain.load_state_dict(_llama().state_dict(), strict=False)
    beft = get_peft_model(plain, BeftConfig(target_modules=["down_proj"]))
    beft_layers = [layer.mlp.down_proj for layer in beft.base_model.model.model.layers]
    for theirs, ours in zip(beft_layers, layers, strict=True):
        edit = ours.red_edit["default"]
        theirs.beft_bias["default"].data = edit.shift.data[None]
        theirs.base_layer.weight.data = edit.scale.data[:, None] * theirs.base_layer.weight.data

    with torch.no_grad():
        difference = (red(IDS).logits - beft(IDS).logits).abs().max()

    assert difference <= 1e-5
