"""Where a model of transformers keeps its parts, read off its structure: the trunk, the blocks, the longest input."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from alignlab.errors import ModelError
from alignlab.models.config import Shape

NO_LIMIT = 1 << 20
"""Tokens of the longest input of a model that counts no positions: a recurrent one, or one with distances in their place."""

CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "context_length", "n_ctx")
"""Where configurations keep the longest input; GPT-2's n_positions answers to the first."""


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The model without its head: the part that it calls its base, or the one beside the output embedding."""
    trunk = getattr(model, model.base_model_prefix, None)
    others = (part for part in model.children() if part is not model.get_output_embeddings())
    return trunk if isinstance(trunk, nn.Module) else next(others)


def block_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of a model's blocks, of the text part where there are others: the outermost list that is as long
    as the model is deep. Raises ModelError where there is none."""
    text = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    depth = getattr(text_config(text.config), "num_hidden_layers", None) if hasattr(text, "config") else None
    within = next((name for name, module in model.named_modules() if module is text), "")
    for name, module in text.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return ".".join(filter(None, (within, name))), module
    raise ModelError(f"a {type(model).__name__} has no list of {depth} blocks, so its layers cannot be told apart.")


def shape_of(model: PreTrainedModel) -> Shape:
    """Depth and width of a model, with weights or without."""
    return Shape(len(block_list(model)[1]), int(text_config(model.config).hidden_size))


def context_of(model: PreTrainedModel) -> int:
    """The longest input in tokens; less than the config says where the first positions stand for padding (RoBERTa)."""
    inner = text_config(model.config)
    found = (getattr(inner, key, None) for key in CONTEXT_KEYS)
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    padding = (table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None)
    taken = max((int(index) + 1 for index in padding), default=0)
    return next((int(tokens) - taken for tokens in found if tokens), NO_LIMIT)


def rotary_switch(config: PreTrainedConfig) -> int | None:
    """The length in tokens at which rotary frequencies change for a whole pass (longrope), so that a row's states depend on
    its neighbours; None where they do not."""
    rope = getattr(text_config(config), "rope_parameters", None) or {}
    kinds = rope.values() if all(isinstance(value, dict) for value in rope.values()) else [rope]
    lengths = [
        kind.get("original_max_position_embeddings") or getattr(text_config(config), "original_max_position_embeddings", None)
        for kind in kinds
        if kind.get("rope_type") in ("longrope", "dynamic")
    ]
    return next((int(length) for length in lengths if length), None)


def text_config(config: Any) -> Any:
    """The configuration of the part that reads text."""
    return config.get_text_config(decoder=True)
