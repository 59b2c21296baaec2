"""Where each family keeps its first block, and which of the block's modules write into the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from alignlab.errors import ModelError


@dataclass(frozen=True)
class BlockLayout:
    """`first`: full-match pattern of the first block's name. `writes`: modules inside it, or bare parameters, whose output is
    added to the residual stream; with all of them zero, a pre-norm block is the identity."""

    first: str
    writes: tuple[str, ...]


_LLAMA = BlockLayout(r"(.*\.)?layers\.0", ("self_attn.o_proj", "mlp.down_proj"))
_GPT2 = BlockLayout(r"(.*\.)?h\.0", ("attn.c_proj", "mlp.c_proj"))
_GPTJ = BlockLayout(r"(.*\.)?h\.0", ("attn.out_proj", "mlp.fc_out"))
_BLOOM = BlockLayout(r"(.*\.)?h\.0", ("self_attention.dense", "mlp.dense_4h_to_h"))
_OPT = BlockLayout(r"(.*\.)?layers\.0", ("self_attn.out_proj", "fc2"))
_MIXTRAL = BlockLayout(r"(.*\.)?layers\.0", ("self_attn.o_proj", "mlp.experts.down_proj"))

BLOCK_LAYOUTS: Mapping[str, BlockLayout] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "arcee", "nemotron", "helium", "granite", "seed_oss"), _LLAMA),
    **dict.fromkeys(("olmo", "phi3", "stablelm", "smollm3", "glm", "ernie4_5", "hunyuan_v1_dense", "apertus"), _LLAMA),
    # Attention and feed-forward read the same input and are added together.
    **dict.fromkeys(("cohere", "cohere2"), _LLAMA),
    # What is written is normalised first, and the norm of zero is zero.
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "olmo2", "olmo3", "glm4", "exaone4"), _LLAMA),
    "deepseek_v3": _LLAMA,  # its first blocks are dense
    **dict.fromkeys(("mixtral", "qwen3_moe", "olmoe", "phimoe"), _MIXTRAL),
    "qwen2_moe": replace(_MIXTRAL, writes=(*_MIXTRAL.writes, "mlp.shared_expert.down_proj")),
    "granitemoe": replace(_MIXTRAL, writes=("self_attn.o_proj", "block_sparse_moe.experts.down_proj")),
    "starcoder2": replace(_LLAMA, writes=("self_attn.o_proj", "mlp.c_proj")),
    "phi": replace(_LLAMA, writes=("self_attn.dense", "mlp.fc2")),
    "persimmon": replace(_LLAMA, writes=("self_attn.dense", "mlp.dense_4h_to_h")),
    "gpt_neox": replace(_LLAMA, writes=("attention.dense", "mlp.dense_4h_to_h")),
    **dict.fromkeys(("opt", "biogpt", "xglm"), _OPT),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT2),
    "gpt_neo": replace(_GPT2, writes=("attn.attention.out_proj", "mlp.c_proj")),
    **dict.fromkeys(("gptj", "codegen"), _GPTJ),
    **dict.fromkeys(("bloom", "falcon"), _BLOOM),
    "mpt": BlockLayout(r"(.*\.)?blocks\.0", ("attn.out_proj", "ffn.down_proj")),
}
"""transformers model type -> layout. Each is looked at once the weights are there (`refuse_other_than_identity`)."""

POST_NORM = (
    "albert",
    "bert",
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "roberta",
    "xlm-roberta",
)
"""Families that normalise the sum: Norm(h + 0) is not h, so no block of theirs is the identity."""


def block_layout(config: Mapping[str, Any]) -> BlockLayout:
    """The layout for a model's configuration. Raises ModelError, with what to do, where no block can be put in front."""
    kind = str(config.get("model_type"))
    if config.get("is_encoder_decoder"):
        raise ModelError(f"CLM puts a block in front of a decoder; {kind} is an encoder-decoder model. Take a causal model.")
    if kind in POST_NORM:
        raise ModelError(
            f"CLM needs a pre-norm residual stream; a {kind} model normalises h + f(h), so no added block starts as the"
            f" identity. Take a causal model such as llama, qwen3 or gpt2."
        )
    if kind not in BLOCK_LAYOUTS:
        raise ModelError(
            f"CLM knows no block layout for models of type {kind!r} (known: {', '.join(sorted(BLOCK_LAYOUTS))}); if its"
            " blocks are pre-norm, give tuner.writes, the modules of the first block that write into the residual stream, or"
            " ClmConfig(target_modules=<pattern of the first block>, writes=[...])."
        )
    return BLOCK_LAYOUTS[kind]
