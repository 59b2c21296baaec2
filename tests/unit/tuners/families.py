"""Tiny random models of many architectures, for the tables of places: shapes as each configuration calls them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

VOCABULARY = 64
_PLAIN = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY, "intermediate_size": 48},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64},
}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_HEADS_OF_8 = {**_GROUPED, "head_dim": 8}
_OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
_EXPERTS = {**_HEADS_OF_8, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
    "decoder_start_token_id": 0,
}
_BART = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": VOCABULARY, "max_position_embeddings": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2},
}

_ROTARY = {**_OLD, "rotary_dim": 4}
_DEEPSEEK = {
    **{**_GROUPED, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
}

CAUSAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "olmo", "olmo2", "olmo3", "phi3", "stablelm", "smollm3"), _GROUPED),
    **dict.fromkeys(("granite", "cohere", "cohere2", "starcoder2", "nemotron", "exaone4", "arcee", "apertus"), _GROUPED),
    **dict.fromkeys(("qwen3", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "helium", "seed_oss", "ernie4_5"), _HEADS_OF_8),
    "hunyuan_v1_dense": _HEADS_OF_8,
    **dict.fromkeys(("phi", "gpt_neox", "persimmon", "biogpt"), _PLAIN),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _OLD),
    **dict.fromkeys(("gptj", "codegen"), _ROTARY),
    "gpt_neo": {**_PLAIN, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "opt": {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "xglm": {**_PLAIN, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "bloom": {**_PLAIN, "n_layer": 2, "n_head": 4},
    "falcon": _PLAIN,
    "lfm2": {**_GROUPED, "layer_types": ["conv", "full_attention"]},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": VOCABULARY, "expansion_ratio": 2},
}
EXPERTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("mixtral", "qwen3_moe", "olmoe", "phimoe", "granitemoe"), _EXPERTS),
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 16},
    "deepseek_v3": {**_DEEPSEEK, "first_k_dense_replace": 1},
}
ENCODERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bert", "roberta", "electra", "deberta", "deberta-v2", "camembert", "xlm-roberta", "modernbert"), _PLAIN),
    "albert": {**_PLAIN, "embedding_size": 16},
    "distilbert": {**_PLAIN, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
}
WITH_DECODER: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("t5", "mt5"), _T5),
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian"), _BART),
}
IDS_RT = torch.arange(3, 24).reshape(3, 7)


def model_of(kind: str) -> PreTrainedModel:
    """The same weights each time, with logits that differ from token to token."""
    auto = (
        AutoModelForSequenceClassification
        if kind in ENCODERS
        else AutoModelForSeq2SeqLM
        if kind in WITH_DECODER
        else AutoModelForCausalLM
    )
    settings = {**CAUSAL, **EXPERTS, **ENCODERS, **WITH_DECODER}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = auto.from_config(AutoConfig.for_model(kind, **settings)).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.15)
    return model


def outputs(model: nn.Module) -> Tensor:
    """Logits of three rows of seven tokens; class scores of a classifier."""
    decoder = {"decoder_input_ids": IDS_RT[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS_RT, attention_mask=torch.ones_like(IDS_RT), **decoder).logits
    return found


def moved(model: nn.Module, part: str, spread: float) -> None:
    """Gives the parameters whose name holds `part` numbers as a training could have left them."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data.add_(spread * torch.randn(parameter.shape, generator=generator))
