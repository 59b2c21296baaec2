"""Where each family keeps its first block, and which of the block's modules write into the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignlab.errors import ModelError


@dataclass(frozen=True)
class BlockLayout:
    """`first`: full-match pattern of the first block's name. `writes`: modules inside it whose output is added to the
    residual stream; with all of them zero, a pre-norm block is the identity."""

    first: str
    writes: tuple[str, ...]


_LLAMA = BlockLayout(r"(.*\.)?layers\.0", ("self_attn.o_proj", "mlp.down_proj"))
_GPT2 = BlockLayout(r"(.*\.)?h\.0", ("attn.c_proj", "mlp.c_proj"))

BLOCK_LAYOUTS: Mapping[str, BlockLayout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": _GPT2,
}
"""transformers model type -> layout; all of them add to the residual stream before the next norm."""

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
            f" identity. Take a causal model such as {', '.join(BLOCK_LAYOUTS)}."
        )
    if kind not in BLOCK_LAYOUTS:
        raise ModelError(
            f"CLM knows no block layout for models of type {kind!r} (known: {', '.join(sorted(BLOCK_LAYOUTS))}); if its"
            " blocks are pre-norm, pass ClmConfig(target_modules=<pattern of the first block>, writes=[<modules that write into"
            " the residual stream>]), or add a row to BLOCK_LAYOUTS."
        )
    return BLOCK_LAYOUTS[kind]
