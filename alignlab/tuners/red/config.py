"""What a RED adapter needs to be rebuilt, and where RED and RED+ sit in each family of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from peft import PeftConfig

from alignlab.errors import ConfigError, ModelError
from alignlab.tuners.config import EDITS
from alignlab.tuners.peft_types import grow

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


@dataclass
class RedConfig(PeftConfig):
    """The configuration of a RED adapter.

    No field may be called `bias`: peft reads one of that name as "which biases of the base to train and save".

    Raises:
        ConfigError: `edit` is unknown, or `layers_pattern` stands without `layers_to_transform`.
    """

    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Suffixes or one full-match pattern; None: RED's place in this type of model."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Suffixes or one full-match pattern of modules to leave alone."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the blocks to edit; None: all. Works with patterns as well."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list that holds the blocks, where the first index is not theirs."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules beside the edit that are trained and saved, such as a new head."}
    )
    edit: str = field(default="both", metadata={"help": "What is learned: both, scale or shift."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = grow("RED")
        if self.edit not in EDITS:
            raise ConfigError(f"unknown edit {self.edit!r} for RED; known: {', '.join(EDITS)}.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("RED's layers_pattern needs layers_to_transform: name the indices of the blocks to edit.")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)


def red_targets(model_type: str) -> str:
    """The full-match pattern of RED's place, the feed-forward output of every block, for a transformers model type."""
    return _lookup("RED", RED_TARGETS, model_type)


def red_plus_targets(model_type: str) -> str:
    """The full-match pattern of RED+'s five places per block for a transformers model type."""
    return _lookup("RED+", RED_PLUS_TARGETS, model_type)


def _lookup(method: str, table: Mapping[str, str], model_type: str) -> str:
    if model_type in EXPERTS:
        raise ModelError(
            f"{method} edits the output of a feed-forward layer, and models of type {model_type!r} have experts instead,"
            " which are no layers of their own; give tuner.targets (target_modules), such as self_attn.o_proj, or tuner=lora."
        )
    if model_type not in table:
        raise ModelError(
            f"{method} has no known place in models of type {model_type!r} (known: {', '.join(sorted(table))}); give "
            "tuner.targets, in peft target_modules: the names of the layers to edit, such as ['mlp.down_proj'], or one pattern."
        )
    return table[model_type]
