"""Models and configurations that cannot hold an identity block, each refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ConfigError, ModelError
from alignlab.tuners.clm import ClmConfig
from alignlab.tuners.clm.tuner import block_layout

Build = Callable[[str], PreTrainedModel]
Logits = Callable[..., Tensor]

NEOX = ClmConfig(target_modules=r"(.*\.)?layers\.0", writes=["attention.dense", "mlp.dense_4h_to_h"])


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_post_norm_model_is_refused(build: Build, family: str) -> None:
    with pytest.raises(ModelError, match=rf"pre-norm residual stream; a {family} model normalises h \+ f\(h\)"):
        get_peft_model(build(family), ClmConfig())


def test_an_encoder_decoder_model_is_refused(build: Build) -> None:
    with pytest.raises(ModelError, match="in front of a decoder; t5 is an encoder-decoder model"):
        get_peft_model(build("t5"), ClmConfig())


def test_an_unknown_family_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ModelError, match=r"'gpt_x' \(known: .*gpt2.*llama, .*\); .* tuner\.writes.* ClmConfig\(target_modules=.*"
    ):
        block_layout({"model_type": "gpt_x"})


def test_an_unknown_family_is_taken_where_its_block_is_described(build: Build, logits: Logits) -> None:
    before = logits(build("gpt_neox"))

    tuned = get_peft_model(build("gpt_neox"), NEOX)

    assert torch.equal(logits(tuned), before)
    assert sum(parameter.requires_grad for parameter in tuned.parameters()) == 12


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blocks": 0}, "CLM takes 1 to 3 blocks, got 0"),
        ({"blocks": 4}, "CLM takes 1 to 3 blocks, got 4"),
        ({"merge": "states"}, "unknown merge 'states' for CLM; known: logits, embeddings"),
        ({"start": "zero"}, "unknown start 'zero' for CLM; known: identity, random"),
        ({"target_modules": "h.0"}, "describe one block together; give both, or neither"),
        ({"writes": ["mlp.c_proj"]}, "describe one block together; give both, or neither"),
    ],
)
def test_a_config_without_a_meaning_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ClmConfig(**changes)


@pytest.mark.parametrize(("pattern", "count"), [(r".*layers\.\d", 2), (r".*layers\.7", 0)])
def test_a_pattern_that_names_not_exactly_one_block_is_refused(build: Build, pattern: str, count: int) -> None:
    config = ClmConfig(target_modules=pattern, writes=["mlp.down_proj"])

    with pytest.raises(ModelError, match=f"names {count} modules; it must name the first block"):
        get_peft_model(build("llama"), config)


def test_writes_that_the_block_does_not_have_are_refused(build: Build) -> None:
    config = ClmConfig(target_modules=r".*layers\.0", writes=["mlp.down_proj", "mlp.dense"])

    with pytest.raises(ModelError, match=r"layers\.0 has no module mlp\.dense"):
        get_peft_model(build("llama"), config)


@pytest.mark.parametrize("place", ["mlp.down_proj", "self_attn.q_proj"])
def test_quantised_weights_are_refused(build: Build, place: str) -> None:
    model = build("llama")
    quantised = torch.ones(32, 48, dtype=torch.int8)
    model.model.layers[0].get_submodule(place).weight = nn.Parameter(quantised, requires_grad=False)

    with pytest.raises(ModelError, match=r"holds weights of type torch\.int8 \(quantised\); load the backbone in bfloat16"):
        get_peft_model(model, ClmConfig())


def test_packed_weights_are_refused(build: Build) -> None:
    # As torchao and GPTQ keep them: in buffers, without a parameter to copy.
    model = build("llama")
    packed = nn.Module()
    packed.register_buffer("packed", torch.ones(4, dtype=torch.int32))
    model.model.layers[0].mlp.down_proj = packed

    with pytest.raises(ModelError, match=r"holds no plain weights in mlp\.down_proj \(quantised\)"):
        get_peft_model(model, ClmConfig())


def test_a_refused_model_is_left_as_it_was(build: Build, logits: Logits) -> None:
    model = build("llama")
    before = logits(model)

    with pytest.raises(ModelError, match="nowhere"):
        get_peft_model(model, ClmConfig(target_modules=r".*layers\.0", writes=["nowhere"]))

    assert torch.equal(logits(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())
