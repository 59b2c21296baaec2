"""What one block costs on the backbones of the paper, on models without memory, built from configurations alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from peft import get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from alignlab.tuners.clm import ClmConfig

# Widths of the released models, from the config.json of each.
LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_3B = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24}
QWEN_1B = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
QWEN_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama-3.1-8b": lambda: LlamaForCausalLM(
        LlamaConfig(**LLAMA_8B, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False)
    ),
    "llama-3.2-3b": lambda: LlamaForCausalLM(
        LlamaConfig(**LLAMA_3B, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True)
    ),
    "qwen2.5-1.5b": lambda: Qwen2ForCausalLM(
        Qwen2Config(**QWEN_1B, num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True)
    ),
    "qwen2.5-7b": lambda: Qwen2ForCausalLM(
        Qwen2Config(**QWEN_7B, num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False)
    ),
    "gpt2-medium": lambda: GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
}


def block_of(width: int, keys: int, inner: int, *, biases: bool) -> int:
    """One block: q and o, k and v, three matrices of the feed-forward, two norms; and perhaps biases of q, k and v."""
    plain = 2 * width * width + 2 * width * keys + 3 * width * inner + 2 * width
    return plain + (width + 2 * keys) * biases


@cache
def counted(model: str, blocks: int) -> tuple[int, int, int]:
    """Trainable and frozen numbers of a model with added blocks, and how many tensors train."""
    with torch.device("meta"):
        tuned = get_peft_model(MODELS[model](), ClmConfig(blocks=blocks))
    learned = [parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad]
    return sum(learned), sum(parameter.numel() for parameter in tuned.parameters()) - sum(learned), len(learned)


@pytest.mark.parametrize(
    ("model", "by_hand", "count", "tensors"),
    [
        ("llama-3.1-8b", block_of(4096, 8 * 128, 14336, biases=False), 218_112_000, 9),
        ("llama-3.2-3b", block_of(3072, 8 * 128, 8192, biases=False), 100_669_440, 9),
        ("qwen2.5-1.5b", block_of(1536, 2 * 128, 8960, biases=True), 46_797_824, 12),
        ("qwen2.5-7b", block_of(3584, 4 * 128, 18944, biases=True), 233_057_792, 12),
        # Four matrices of d x d and two of d x 4d, biases of 9 d, two norms of 2 d.
        ("gpt2-medium", 12 * 1024 * 1024 + 13 * 1024, 12_596_224, 12),
    ],
)
def test_one_block_is_all_parameters_of_the_first(model: str, by_hand: int, count: int, tensors: int) -> None:
    learned, _, parts = counted(model, 1)

    assert learned == by_hand == count
    assert parts == tensors


@pytest.mark.parametrize(
    ("model", "backbone", "percent"),
    [
        ("llama-3.1-8b", 8_030_261_248, 2.7),
        ("llama-3.2-3b", 3_212_749_824, 3.1),
        ("qwen2.5-1.5b", 1_543_714_304, 3.0),
        ("qwen2.5-7b", 7_615_616_512, 3.1),
    ],
)
def test_share_of_the_backbone(model: str, backbone: int, percent: float) -> None:
    learned, frozen, _ = counted(model, 1)

    assert frozen == backbone
    assert round(100 * learned / frozen, 1) == percent


def test_the_count_that_was_printed_for_7b_is_in_units_of_two_to_the_twentieth() -> None:
    learned, _, _ = counted("qwen2.5-7b", 1)

    assert learned // 2**20 == 222


@pytest.mark.parametrize("blocks", [2, 3])
def test_blocks_cost_as_many_times_one(blocks: int) -> None:
    learned, frozen, _ = counted("qwen2.5-1.5b", blocks)

    assert learned == blocks * 46_797_824
    assert frozen == 1_543_714_304
