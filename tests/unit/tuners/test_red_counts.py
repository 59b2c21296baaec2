"""Parameter counts and ratios of the paper, on models without memory, built from configurations alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from alignlab.tuners.red import RedConfig, red_plus_targets


def _roberta(width: int, blocks: int, heads: int) -> PreTrainedModel:
    config = RobertaConfig(
        vocab_size=50265,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=2,
    )
    return RobertaForSequenceClassification(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    # The defaults of LlamaConfig and of T5Config with 12 blocks of 768 are Llama-2-7B and T5-base v1.0.
    "llama-2-7b": lambda: LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False)),
    "gpt2-medium": lambda: GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
    "gpt2-large": lambda: GPT2LMHeadModel(GPT2Config(n_embd=1280, n_layer=36, n_head=20)),
    "roberta-base": lambda: _roberta(768, 12, 12),
    "roberta-large": lambda: _roberta(1024, 24, 16),
    "t5-base": lambda: T5ForConditionalGeneration(
        T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0)
    ),
}


def _trainable(model: str, config: PeftConfig) -> list[nn.Parameter]:
    with torch.device("meta"):
        tuned = get_peft_model(MODELS[model](), config)
    return [parameter for parameter in tuned.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("model", "count", "tensors"),
    [
        ("llama-2-7b", 262_144, 64),
        ("gpt2-medium", 49_152, 48),
        ("gpt2-large", 92_160, 72),
        ("roberta-base", 18_432, 24),
        ("roberta-large", 49_152, 48),
        ("t5-base", 36_864, 48),
    ],
)
def test_red_count(model: str, count: int, tensors: int) -> None:
    learned = _trainable(model, RedConfig())

    assert (sum(parameter.numel() for parameter in learned), len(learned)) == (count, tensors)


@pytest.mark.parametrize(
    ("model", "family", "count", "tensors"),
    [
        ("roberta-base", "roberta", 92_160, 120),
        ("roberta-large", "roberta", 245_760, 240),
        ("gpt2-medium", "gpt2", 245_760, 144),
        ("gpt2-large", "gpt2", 460_800, 216),
        # Our choice of places: 2 x 32 blocks x 5 outputs of 4096.
        ("llama-2-7b", "llama", 1_310_720, 320),
    ],
)
def test_red_plus_count(model: str, family: str, count: int, tensors: int) -> None:
    learned = _trainable(model, RedConfig(target_modules=red_plus_targets(family)))

    assert (sum(parameter.numel() for parameter in learned), len(learned)) == (count, tensors)


@pytest.mark.parametrize("edit", ["scale", "shift"])
def test_half_an_edit_is_half_the_count(edit: str) -> None:
    learned = _trainable("llama-2-7b", RedConfig(edit=edit))

    assert sum(parameter.numel() for parameter in learned) == 131_072


def test_fused_attention_of_gpt2_gets_one_vector_of_three_widths() -> None:
    learned = _trainable("gpt2-medium", RedConfig(target_modules=["attn.c_attn"]))

    assert {tuple(parameter.shape) for parameter in learned} == {(3 * 1024,)}


def test_ratio_to_full_fine_tuning_of_llama() -> None:
    with torch.device("meta"):
        full = sum(parameter.numel() for parameter in MODELS["llama-2-7b"]().parameters())

    red = sum(parameter.numel() for parameter in _trainable("llama-2-7b", RedConfig()))

    assert full == 6_738_415_616
    assert round(full / red) == 25_705


@pytest.mark.parametrize(
    ("model", "rank", "targets", "ratio"),
    [("llama-2-7b", 16, ["q_proj", "v_proj"], 32.0), ("roberta-large", 8, ["query", "value"], 16.0)],
)
def test_ratio_to_lora(model: str, rank: int, targets: list[str], ratio: float) -> None:
    lora = sum(parameter.numel() for parameter in _trainable(model, LoraConfig(r=rank, target_modules=targets)))

    red = sum(parameter.numel() for parameter in _trainable(model, RedConfig()))

    assert lora / red == ratio


def test_ratio_to_full_fine_tuning_of_roberta_large() -> None:
    with torch.device("meta"):
        full = sum(parameter.numel() for parameter in MODELS["roberta-large"]().parameters())

    red = sum(parameter.numel() for parameter in _trainable("roberta-large", RedConfig()))

    assert full == 355_361_794
    assert round(full / red) == 7_230
