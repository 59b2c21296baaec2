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

RED_TARGETS: Mapping[str, str] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gpt2": _GPT2,
    "t5": _T5,
    "roberta": _BERT,
    "bert": _BERT,
}
"""Model type -> full-match pattern of the feed-forward outputs (paper, section 3)."""

_LLAMA_PLUS = r"(.*\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.down_proj)"
_BERT_PLUS = r"(.*\.)?encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.dense|output\.dense)"
_GPT2_PLUS = r"(.*\.)?h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_proj)"

RED_PLUS_TARGETS: Mapping[str, str] = {
    "llama": _LLAMA_PLUS,
    "mistral": _LLAMA_PLUS,
    "qwen2": _LLAMA_PLUS,
    "qwen3": _LLAMA_PLUS,
    "gemma": _LLAMA_PLUS,
    "gpt2": _GPT2_PLUS,
    "roberta": _BERT_PLUS,
    "bert": _BERT_PLUS,
}
"""Model type -> pattern of RED+: q, k, v, the attention's output and the feed-forward output. Llama's is our choice."""


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
    if model_type not in table:
        raise ModelError(
            f"{method} has no known place in models of type {model_type!r} (known: {', '.join(sorted(table))}); pass "
            "target_modules with the names of the layers to edit, such as ['mlp.down_proj'], or one full-match pattern."
        )
    return table[model_type]
