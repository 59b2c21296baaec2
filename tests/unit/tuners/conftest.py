"""Tiny random models of many families, with logits of order 1, and adapters that look trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from alignlab.tuners.red import RedConfig, RedLayer

WIDTH, BLOCKS, VOCABULARY = 32, 2, 96
SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "vocab_size": VOCABULARY}
MAKERS: dict[str, tuple[type[PreTrainedModel], Callable[[], PreTrainedConfig]]] = {
    "llama": (LlamaForCausalLM, lambda: LlamaConfig(**SHAPE, num_key_value_heads=2, intermediate_size=48)),
    "mistral": (MistralForCausalLM, lambda: MistralConfig(**SHAPE, num_key_value_heads=2, intermediate_size=48)),
    "qwen2": (Qwen2ForCausalLM, lambda: Qwen2Config(**SHAPE, num_key_value_heads=2, intermediate_size=48)),
    # A first block that sees four tokens back, and a second that sees all.
    "qwen2_sliding": (
        Qwen2ForCausalLM,
        lambda: Qwen2Config(
            **SHAPE,
            num_key_value_heads=2,
            intermediate_size=48,
            use_sliding_window=True,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ),
    "qwen3": (Qwen3ForCausalLM, lambda: Qwen3Config(**SHAPE, num_key_value_heads=2, intermediate_size=48, head_dim=8)),
    "gemma": (GemmaForCausalLM, lambda: GemmaConfig(**SHAPE, num_key_value_heads=2, intermediate_size=48, head_dim=8)),
    "gpt_neox": (GPTNeoXForCausalLM, lambda: GPTNeoXConfig(**SHAPE, intermediate_size=48, use_parallel_residual=False)),
    "bert": (
        BertLMHeadModel,
        lambda: BertConfig(**SHAPE, intermediate_size=48, max_position_embeddings=40, is_decoder=True),
    ),
    "gpt2": (
        GPT2LMHeadModel,
        lambda: GPT2Config(n_embd=WIDTH, n_layer=BLOCKS, n_head=4, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0),
    ),
    "roberta": (
        RobertaForSequenceClassification,
        lambda: RobertaConfig(**SHAPE, intermediate_size=48, max_position_embeddings=40, num_labels=2),
    ),
    "t5": (
        T5ForConditionalGeneration,
        lambda: T5Config(
            d_model=WIDTH,
            d_kv=8,
            d_ff=48,
            num_layers=BLOCKS,
            num_heads=4,
            vocab_size=VOCABULARY,
            decoder_start_token_id=0,
            tie_word_embeddings=False,
        ),
    ),
}


@pytest.fixture
def build() -> Callable[[str], PreTrainedModel]:
    """A model of the named family, in evaluation mode; the same weights each time."""

    def make(family: str) -> PreTrainedModel:
        kind, config = MAKERS[family]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind(config()).eval()
            for parameter in model.parameters():
                nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.15)
        return model

    return make


@pytest.fixture
def logits() -> Callable[..., Tensor]:
    """The logits of three rows of seven tokens, without gradients."""
    ids = torch.arange(4, 25).reshape(3, 7)

    def answer(model: nn.Module) -> Tensor:
        decoder = {"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {}
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder).logits

    return answer


@pytest.fixture
def train() -> Callable[[nn.Module], nn.Module]:
    """Gives every edit below a model the spread of a released one: scales of 1 +- 0.6, some 0, and shifts of +- 0.3.

    Every number of an added block moves by about 0.1.
    """

    def draw(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for layer in [module for module in model.modules() if isinstance(module, RedLayer)]:
            for name, vector in layer.red_edit.named_parameters():
                is_scale = name.endswith("scale")
                vector.data.normal_(float(is_scale), 0.6 if is_scale else 0.3, generator=generator)
                vector.data[:2] = 0.0
        for tensor in [parameter for name, parameter in model.named_parameters() if ".clm_blocks." in name]:
            tensor.data.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        return model

    return draw


@pytest.fixture
def tuned(build: Callable[[str], PreTrainedModel], train: Callable[[nn.Module], nn.Module]) -> PeftModel:
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
