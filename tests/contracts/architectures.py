"""Tiny models of many architectures, from transformers' own configurations, with random weights in float32; and what of each is
refused, with the reason. The one table of architectures: a row more is an architecture more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from alignlab.models.kinds import KINDS

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What an architecture takes unless its row says otherwise; a setting that it does not know is kept and never read."""


@dataclass(frozen=True)
class Row:
    """An architecture: transformers' `model_type`, what is set beside `COMMON`, and its kind of backbone."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    kind: str = "causal"


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


def _classifier(model_type: str, settings: dict[str, Any] | None = None) -> Row:
    return Row(model_type, {"num_labels": 3, **(settings or {})}, "classifier")


def _seq2seq(model_type: str, settings: dict[str, Any]) -> Row:
    return Row(model_type, {"decoder_start_token_id": 0, **settings}, "seq2seq")


_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
_BART = {
    "decoder_start_token_id": 2,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}

ARCHITECTURES: Mapping[str, Row] = {
    "llama": Row("llama"),
    "llama_linear": Row("llama", _rope("linear", factor=2.0)),
    "llama_dynamic": Row("llama", _rope("dynamic", factor=2.0)),
    "llama_yarn": Row("llama", _rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama_llama3": Row(
        "llama",
        _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    ),
    "llama_longrope": Row(
        "llama",
        _rope(
            "longrope",
            factor=4.0,
            short_factor=[1.0, 1.1, 1.2, 1.3],
            long_factor=[2.0, 2.5, 3.0, 4.0],
            original_max_position_embeddings=16,
        ),
    ),
    "mistral": Row("mistral", {"sliding_window": 6, "head_dim": 8}),
    "ministral": Row("ministral", {"sliding_window": 6, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "mixtral": Row("mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "qwen2": Row("qwen2"),
    "qwen2_sliding": Row("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen2_moe": Row(
        "qwen2_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "qwen3": Row("qwen3", {"head_dim": 8}),
    "qwen3_moe": Row("qwen3_moe", {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "qwen3_next": Row(
        "qwen3_next",
        {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "gemma": Row("gemma", {"head_dim": 8}),
    "gemma2": Row("gemma2", {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8}),
    "gemma3_text": Row(
        "gemma3_text",
        {
            "head_dim": 8,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma3": Row(
        "gemma3",
        {
            "text_config": {
                **COMMON,
                "head_dim": 8,
                "sliding_window": 6,
                "query_pre_attn_scalar": 8,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 60,
            "boi_token_index": 61,
            "eoi_token_index": 62,
        },
    ),
    "llama4_text": Row(
        "llama4_text",
        {
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "attention_chunk_size": 6,
            "interleave_moe_layer_step": 2,
        },
    ),
    "llama4": Row(
        "llama4",
        {
            "text_config": {
                **COMMON,
                "head_dim": 8,
                "intermediate_size_mlp": 48,
                "num_local_experts": 2,
                "attention_chunk_size": 6,
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
                "vision_output_dim": 16,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
            },
        },
    ),
    "phi": Row("phi", {"num_key_value_heads": 4}),
    "phi3": Row("phi3", {"sliding_window": 6}),
    "phimoe": Row("phimoe", {"num_local_experts": 4, "sliding_window": None}),
    "olmo": Row("olmo"),
    "olmo2": Row("olmo2"),
    "olmo3": Row("olmo3", {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}),
    "olmoe": Row("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": Row("gpt2"),
    "gpt_neo": Row("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 6}),
    "gpt_neox": Row("gpt_neox"),
    "gptj": Row("gptj", {"rotary_dim": 4}),
    "gpt_bigcode": Row("gpt_bigcode"),
    "gpt_oss": Row(
        "gpt_oss",
        {"head_dim": 8, "num_local_experts": 4, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "codegen": Row("codegen", {"rotary_dim": 4}),
    "opt": Row("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": Row("bloom", {"n_head": 4}),
    "falcon": Row("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": Row(
        "falcon", {"new_decoder_architecture": False, "multi_query": False, "alibi": True, "parallel_attn": False, "bias": True}
    ),
    "falcon_h1": Row(
        "falcon_h1",
        {
            "head_dim": 8,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
            "lm_head_multiplier": 0.5,
        },
    ),
    "mpt": Row("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 64}),
    "stablelm": Row("stablelm"),
    "smollm3": Row("smollm3"),
    "glm": Row("glm", {"head_dim": 8}),
    "glm4": Row("glm4", {"head_dim": 8}),
    "granite": Row(
        "granite", {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.5}
    ),
    "granitemoe": Row("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 2.0}),
    "granitemoehybrid": Row(
        "granitemoehybrid",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 16,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
    ),
    "lfm2": Row("lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48, "block_auto_adjust_ff_dim": False}),
    "minimax": Row(
        "minimax",
        {"head_dim": 8, "num_local_experts": 4, "block_size": 8, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "deepseek_v2": Row(
        "deepseek_v2",
        {
            "q_lora_rank": 16,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
            "num_key_value_heads": 4,
        },
    ),
    "deepseek_v3": Row(
        "deepseek_v3",
        {
            "q_lora_rank": 16,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
            "num_key_value_heads": 4,
        },
    ),
    "cohere": Row("cohere", {"logit_scale": 0.25}),
    "cohere2": Row(
        "cohere2", {"logit_scale": 0.25, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
    ),
    "mamba": Row("mamba", {"state_size": 4, "conv_kernel": 4}),
    "mamba2": Row("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}),
    "falcon_mamba": Row("falcon_mamba", {"state_size": 4}),
    "jamba": Row(
        "jamba",
        {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "recurrent_gemma": Row(
        "recurrent_gemma", {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 6, "head_dim": 8}
    ),
    "starcoder2": Row("starcoder2", {"sliding_window": 6}),
    "nemotron": Row("nemotron"),
    "xglm": Row("xglm", {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    "biogpt": Row("biogpt"),
    "exaone4": Row("exaone4", {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}),
    "rwkv": Row("rwkv", {"attention_hidden_size": 32, "context_length": 64}),
    "bert": _classifier("bert"),
    "roberta": _classifier("roberta", {"max_position_embeddings": 66}),
    "xlm_roberta": _classifier("xlm-roberta", {"max_position_embeddings": 66}),
    "distilbert": _classifier("distilbert", {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
    "electra": _classifier("electra", {"embedding_size": 16}),
    "deberta": _classifier("deberta", _RELATIVE),
    "deberta_v2": _classifier("deberta-v2", {**_RELATIVE, "share_att_key": True, "position_buckets": 8}),
    "albert": _classifier("albert", {"embedding_size": 16}),
    "mpnet": _classifier("mpnet", {"max_position_embeddings": 66}),
    "modernbert": _classifier("modernbert", {"local_attention": 6, "global_attn_every_n_layers": 2}),
    "roformer": _classifier("roformer", {"embedding_size": 32}),
    "llama_classifier": _classifier("llama"),
    "gpt2_classifier": _classifier("gpt2"),
    "t5": _seq2seq("t5", _T5),
    "t5_gated": _seq2seq("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": _seq2seq("mt5", _T5),
    "umt5": _seq2seq("umt5", _T5),
    "longt5": _seq2seq("longt5", {**_T5, "local_radius": 3}),
    "switch_transformers": _seq2seq(
        "switch_transformers", {**_T5, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    ),
    "bart": _seq2seq("bart", _BART),
    "mbart": _seq2seq("mbart", _BART),
    "marian": _seq2seq("marian", _BART),
    "pegasus": _seq2seq("pegasus", _BART),
    "blenderbot": _seq2seq("blenderbot", _BART),
    "m2m_100": _seq2seq("m2m_100", _BART),
    "led": _seq2seq(
        "led", {**_BART, "attention_window": 8, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
    ),
}

SHARED = "so its layers have no numbers"
NO_PLACE = "has no place for"
AT_ONCE = "every token of a text is read at once"
BESIDE = "each row has a source of its own"
STATE = "logits differ from those of rows alone"
NO_CACHE = "gives no cache"
FUSED = "is incompatible with Mamba-based models"
ROUTER = "does not run with this tuner in it"

OF_KIND = {
    kind: [name for name, row in ARCHITECTURES.items() if row.kind == kind] for kind in ("causal", "classifier", "seq2seq")
}

WITHOUT_BIASES = (
    "mistral", "ministral", "mixtral", "qwen2", "qwen2_sliding", "qwen2_moe", "qwen3", "qwen3_next", "gemma", "gemma2",
    "gemma3_text", "gemma3", "llama4_text", "llama4", "phi3", "olmo", "olmo2", "olmo3", "gpt_neo", "gptj", "codegen",
    "falcon", "falcon_h1", "mpt", "stablelm", "glm", "glm4", "granitemoehybrid", "lfm2", "minimax", "deepseek_v3",
    "cohere", "cohere2", "mamba", "mamba2", "falcon_mamba", "jamba", "exaone4", "rwkv", "deberta", "t5", "t5_gated",
    "mt5", "umt5", "longt5", "switch_transformers",
)  # fmt: skip
"""No options that give the layers of RED's shift a bias."""

REFUSED: Mapping[str, Mapping[str, str]] = {
    # State that runs from token to token, or attention of the model's own, sees the neighbours in the row.
    "one row": {
        **dict.fromkeys(("qwen3_next", "falcon_h1", "granitemoehybrid", "lfm2", "minimax", "mamba", "mamba2"), STATE),
        **dict.fromkeys(("falcon_mamba", "jamba", "recurrent_gemma", "rwkv"), STATE),
        **dict.fromkeys(("gpt_neo", "gptj", "codegen", "bloom", "xglm"), STATE),
        **dict.fromkeys(("falcon", "falcon_alibi"), "unsupported operand"),
        "mpt": "'NoneType' object",
        "gemma2": "attention uses softcap",
        "gpt_oss": "attention uses s_aux",
        **dict.fromkeys(OF_KIND["classifier"], AT_ONCE),
        **dict.fromkeys(OF_KIND["seq2seq"], BESIDE),
    },
    "hidden states": {
        **dict.fromkeys(OF_KIND["classifier"], "which has no response tokens to read hidden states of"),
        **dict.fromkeys(OF_KIND["seq2seq"], "has two stacks"),
    },
    # The cache has another name, or left padding runs into the state.
    "generation": {
        **dict.fromkeys(("recurrent_gemma", "rwkv"), NO_CACHE),
        "minimax": STATE,
        **dict.fromkeys(OF_KIND["classifier"], "writes no text"),
    },
    # peft refuses maps that fused kernels read past it; a router is a Linear that answers with a tuple.
    "lora": {
        **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "falcon_h1"), FUSED),
        **dict.fromkeys(("llama4_text", "llama4", "phimoe"), ROUTER),
    },
    "lora plan": dict.fromkeys(("mamba", "falcon_h1"), FUSED),
    # The mixer reads the weight of dt_proj itself, so what is attached there works in the merged model only.
    "lora merge": {"jamba": "differs from the tuned one"},
    # Its blocks are the same one again and again, so none of them has a number.
    "red": {"albert": SHARED},
    "plan": {"albert": SHARED},
    # The shift becomes a bias, and these layers have none in their configuration.
    "red merge": dict.fromkeys(WITHOUT_BIASES, NO_PLACE),
}
"""What does not work -> architecture -> a part of the sentence that says so."""

HIDDEN_STATES_WITHOUT_EMBEDDINGS = ("mamba", "mamba2", "falcon_mamba", "rwkv")
"""What transformers lists first is the output of the first block; elsewhere it is the embeddings."""

STATE_SPACE = ("A_log", "dt_bias", ".D", "time_decay", "time_first", "recurrent_param")
"""Parameters whose own initialisation keeps a state in range."""

UNSCALED = ("Attention.q.weight",)
"""Queries of a T5, whose attention is not scaled but by its weights."""

_MADE: dict[str, PreTrainedModel] = {}


def configured(name: str) -> PretrainedConfig:
    """The configuration of a row."""
    row = ARCHITECTURES[name]
    ids = {key: value for key, value in COMMON.items() if key.endswith("_token_id")}
    return AutoConfig.for_model(row.model_type, **{**(ids if "text_config" in row.settings else COMMON), **row.settings})


def architecture(name: str) -> PreTrainedModel:
    """A fresh copy of a random model; the same weights each time."""
    if name not in _MADE:
        torch.manual_seed(0)
        auto = KINDS[ARCHITECTURES[name].kind].implementation().auto
        _MADE[name] = auto.from_config(configured(name), dtype=torch.float32).eval()
        _draw(_MADE[name])
        _MADE[name].requires_grad_(False)
    return copy.deepcopy(_MADE[name])


def _draw(model: PreTrainedModel) -> None:
    """Numbers that make logits of order 1, with no norm, bias or gate left at a value where mistakes do not show. What is
    not learned, such as sinusoids, is not stored either and stays."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.endswith(STATE_SPACE):
            noise = torch.randn(parameter.shape, generator=generator)
            drawn = noise / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else parameter + 0.2 * noise
            drawn = drawn / 4 if name.endswith(UNSCALED) else drawn
            parameter.data.copy_(drawn)
