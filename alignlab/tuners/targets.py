"""Where tuners sit: RED's and CLM's places in each family of models, and the layers that a user's `targets` name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ConfigError
from alignlab.registry import nearest

_LLAMA = r"(.*\.)?layers\.\d+\.mlp\.down_proj"
# The bare suffixes `output.dense` and `c_proj` would also match the output of the attention: hence full matches.
_BERT = r"(.*\.)?encoder\.layer\.\d+\.output\.dense"
_GPT2 = r"(.*\.)?h\.\d+\.mlp\.c_proj"
_T5 = r"(.*\.)?block\.\d+\.layer\.\d+\.DenseReluDense\.wo"
_OPT = r"(.*\.)?layers\.\d+\.fc2"
_BART = r"(.*\.)?(encoder|decoder)\.layers\.\d+\.fc2"

_LIKE_LLAMA = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "olmo3", "phi3", "stablelm"),
    *("smollm3", "glm", "glm4", "granite", "cohere", "cohere2", "nemotron", "helium", "exaone4", "seed_oss", "arcee"),
    *("apertus", "hunyuan_v1_dense", "ernie4_5"),
)
_LIKE_BERT = ("bert", "roberta", "electra", "deberta", "deberta-v2", "camembert", "xlm-roberta")

RED_TARGETS: Mapping[str, str] = {
    **dict.fromkeys(_LIKE_LLAMA, _LLAMA),
    **dict.fromkeys(_LIKE_BERT, _BERT),
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gpt_neo"), _GPT2),
    **dict.fromkeys(("gptj", "codegen"), r"(.*\.)?h\.\d+\.mlp\.fc_out"),
    **dict.fromkeys(("bloom", "falcon"), r"(.*\.)?h\.\d+\.mlp\.dense_4h_to_h"),
    **dict.fromkeys(("gpt_neox", "persimmon"), r"(.*\.)?layers\.\d+\.mlp\.dense_4h_to_h"),
    **dict.fromkeys(("opt", "biogpt", "xglm"), _OPT),
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian"), _BART),
    **dict.fromkeys(("t5", "mt5"), _T5),
    "phi": r"(.*\.)?layers\.\d+\.mlp\.fc2",
    "starcoder2": r"(.*\.)?layers\.\d+\.mlp\.c_proj",
    "lfm2": r"(.*\.)?layers\.\d+\.feed_forward\.w2",
    "mpt": r"(.*\.)?blocks\.\d+\.ffn\.down_proj",
    "distilbert": r"(.*\.)?transformer\.layer\.\d+\.ffn\.lin2",
    "albert": r"(.*\.)?albert_layers\.\d+\.ffn_output",
    "modernbert": r"(.*\.)?layers\.\d+\.mlp\.Wo",
}
"""Model type -> full-match pattern of the feed-forward outputs (paper, section 3)."""

EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "phimoe", "deepseek_v3", "minimax")
"""Model types whose feed-forward is a mixture of experts: bare parameters, without an output layer to edit."""

_ATTENTION = r"self_attn\.[qkvo]_proj"
_LLAMA_PLUS = rf"(.*\.)?layers\.\d+\.({_ATTENTION}|mlp\.down_proj)"
_FUSED_PLUS = r"(.*\.)?layers\.\d+\.(self_attn\.(qkv_proj|o_proj)|mlp\.down_proj)"
_BERT_PLUS = r"(.*\.)?encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.dense|output\.dense)"
_DEBERTA_PLUS = r"(.*\.)?encoder\.layer\.\d+\.(attention\.self\.(in|query|key|value)_proj|(attention\.)?output\.dense)"
_GPT2_PLUS = r"(.*\.)?h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_proj)"
_GPTJ_PLUS = r"(.*\.)?h\.\d+\.(attn\.([qkv]|qkv|out)_proj|mlp\.fc_out)"
_BLOOM_PLUS = r"(.*\.)?h\.\d+\.(self_attention\.(query_key_value|dense)|mlp\.dense_4h_to_h)"
_NEOX_PLUS = r"(.*\.)?layers\.\d+\.((self_attn|attention)\.(query_key_value|dense)|mlp\.dense_4h_to_h)"
_OPT_PLUS = r"(.*\.)?layers\.\d+\.(self_attn\.([qkv]|out)_proj|fc2)"

RED_PLUS_TARGETS: Mapping[str, str] = {
    **dict.fromkeys(_LIKE_LLAMA, _LLAMA_PLUS),
    "phi3": _FUSED_PLUS,
    **dict.fromkeys(("bert", "roberta", "electra", "camembert", "xlm-roberta"), _BERT_PLUS),
    **dict.fromkeys(("deberta", "deberta-v2"), _DEBERTA_PLUS),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT2_PLUS),
    **dict.fromkeys(("gptj", "codegen"), _GPTJ_PLUS),
    **dict.fromkeys(("bloom", "falcon"), _BLOOM_PLUS),
    **dict.fromkeys(("gpt_neox", "persimmon"), _NEOX_PLUS),
    **dict.fromkeys(("opt", "biogpt", "xglm"), _OPT_PLUS),
    "phi": r"(.*\.)?layers\.\d+\.(self_attn\.([qkv]_proj|dense)|mlp\.fc2)",
    "starcoder2": rf"(.*\.)?layers\.\d+\.({_ATTENTION}|mlp\.c_proj)",
    "mpt": r"(.*\.)?blocks\.\d+\.(attn\.(Wqkv|out_proj)|ffn\.down_proj)",
    "distilbert": r"(.*\.)?transformer\.layer\.\d+\.(attention\.([qkv]|out)_lin|ffn\.lin2)",
}
"""Model type -> pattern of RED+: q, k, v, the attention's output and the feed-forward output. But for the paper's own models
it is our choice; where q, k and v are one layer, so is their edit."""


@dataclass(frozen=True)
class BlockLayout:
    """`first`: full-match pattern of the first block's name. `writes`: modules inside it, or bare parameters, whose output is
    added to the residual stream; with all of them zero, a pre-norm block is the identity."""

    first: str
    writes: tuple[str, ...]


_LLAMA_BLOCK = BlockLayout(r"(.*\.)?layers\.0", ("self_attn.o_proj", "mlp.down_proj"))
_GPT2_BLOCK = BlockLayout(r"(.*\.)?h\.0", ("attn.c_proj", "mlp.c_proj"))
_GPTJ_BLOCK = BlockLayout(r"(.*\.)?h\.0", ("attn.out_proj", "mlp.fc_out"))
_BLOOM_BLOCK = BlockLayout(r"(.*\.)?h\.0", ("self_attention.dense", "mlp.dense_4h_to_h"))
_OPT_BLOCK = BlockLayout(r"(.*\.)?layers\.0", ("self_attn.out_proj", "fc2"))
_MIXTRAL_BLOCK = BlockLayout(r"(.*\.)?layers\.0", ("self_attn.o_proj", "mlp.experts.down_proj"))

BLOCK_LAYOUTS: Mapping[str, BlockLayout] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "arcee", "nemotron", "helium", "granite", "seed_oss"), _LLAMA_BLOCK),
    **dict.fromkeys(("olmo", "phi3", "stablelm", "smollm3", "glm", "ernie4_5", "hunyuan_v1_dense", "apertus"), _LLAMA_BLOCK),
    # Attention and feed-forward read the same input and are added together.
    **dict.fromkeys(("cohere", "cohere2"), _LLAMA_BLOCK),
    # What is written is normalised first, and the norm of zero is zero.
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "olmo2", "olmo3", "glm4", "exaone4"), _LLAMA_BLOCK),
    "deepseek_v3": _LLAMA_BLOCK,  # its first blocks are dense
    **dict.fromkeys(("mixtral", "qwen3_moe", "olmoe", "phimoe"), _MIXTRAL_BLOCK),
    "qwen2_moe": replace(_MIXTRAL_BLOCK, writes=(*_MIXTRAL_BLOCK.writes, "mlp.shared_expert.down_proj")),
    "granitemoe": replace(_MIXTRAL_BLOCK, writes=("self_attn.o_proj", "block_sparse_moe.experts.down_proj")),
    "starcoder2": replace(_LLAMA_BLOCK, writes=("self_attn.o_proj", "mlp.c_proj")),
    "phi": replace(_LLAMA_BLOCK, writes=("self_attn.dense", "mlp.fc2")),
    "persimmon": replace(_LLAMA_BLOCK, writes=("self_attn.dense", "mlp.dense_4h_to_h")),
    "gpt_neox": replace(_LLAMA_BLOCK, writes=("attention.dense", "mlp.dense_4h_to_h")),
    **dict.fromkeys(("opt", "biogpt", "xglm"), _OPT_BLOCK),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT2_BLOCK),
    "gpt_neo": replace(_GPT2_BLOCK, writes=("attn.attention.out_proj", "mlp.c_proj")),
    **dict.fromkeys(("gptj", "codegen"), _GPTJ_BLOCK),
    **dict.fromkeys(("bloom", "falcon"), _BLOOM_BLOCK),
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

LINEAR = (nn.Linear, Conv1D)
SHOWN = 8
"""Names that a refusal lists where none is near."""

Targets = Sequence[str] | str
"""Ends of names, each behind a dot or the whole name, or one pattern that matches whole names."""


def matched(model: nn.Module, targets: Targets, key: str, kinds: tuple[type[nn.Module], ...] = LINEAR) -> list[str]:
    """The names of the layers that `targets` name. `key`: where they were given, for the sentence.

    Raises ConfigError for a name or a pattern that no module has, and for modules that are not of these `kinds`.
    """
    modules = dict(model.named_modules())
    found: dict[str, None] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        pattern = target if isinstance(targets, str) else rf"(?:.*\.)?{re.escape(target)}"
        here = [name for name in modules if re.fullmatch(pattern, name)]
        if not here:
            layers = [name for name, module in modules.items() if isinstance(module, kinds)]
            raise ConfigError(f"{key}: {target!r} names no layer of this model; nearest here: {near(target, layers)}.")
        other = next((name for name in here if not isinstance(modules[name], kinds)), None)
        if other is not None:
            allowed = " or ".join(kind.__name__ for kind in kinds)
            inside = [name for name, module in modules.items() if name.startswith(f"{other}.") and isinstance(module, kinds)]
            hint = f", for example {', '.join(_short(inside)[:SHOWN])}" if inside else ""
            raise ConfigError(
                f"{key}: {target!r} names {other}, a {type(modules[other]).__name__}; name layers of type {allowed}{hint}."
            )
        found.update(dict.fromkeys(here))
    return [name for name in modules if name in found]


def near(name: str, known: Iterable[str]) -> str:
    """The known names that look most like the given one, or some, without the number of their block and what stands before."""
    short = _short(known)
    wanted = re.sub(r"^.*\*\.?", "", name.replace("\\.", "."))
    ends = {each.rpartition(".")[2]: each for each in reversed(short)}
    close = [ends.get(each, each) for each in nearest(wanted, [*short, *ends])]
    return ", ".join(dict.fromkeys(close) or short[:SHOWN])


def block_names(model: PreTrainedModel) -> list[str]:
    """Names of the blocks of the first stack, in order; empty where no list of that many like modules is found."""
    count = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and len({type(block) for block in module}) == 1:
            return [f"{name}.{index}" for index in range(len(module))]
    return []


def _short(names: Iterable[str]) -> list[str]:
    return sorted({re.sub(r"^.*\.\d+\.", "", name) for name in names})
