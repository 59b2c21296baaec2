"""The blueprints of the embedded models: shape and tokenizer, from which `method=pretrain` starts.

`python -m alignlab.models.embedded` writes config.json and the tokenizer of each into its folder; weights are not touched.
`--to FOLDER` writes below that folder, `--width N` sets the width of the hidden states, `--text FILE ...` has the tokenizers
learn `--pieces N` pieces from plain text in place of the words of the embedded world.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast, RobertaConfig, T5Config

from alignlab.data.files import plain
from alignlab.data.toy.tokenizer import (
    Pieces,
    build_encoder_tokenizer,
    build_seq2seq_tokenizer,
    build_tokenizer,
    learned_pieces,
)
from alignlab.models.config import EMBEDDED

WIDTH, LAYERS, HEADS, CONTEXT = 96, 4, 4, 256
PIECES = 4096
"""Of a tokenizer that learns from texts."""


@dataclass(frozen=True)
class Blueprint:
    """The shape of a model and its tokenizer."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerFast


def blueprints(width: int = WIDTH, pieces: Pieces | None = None) -> dict[str, Blueprint]:
    """Each embedded model, by name. `pieces`: of its tokenizer, None = those of the embedded world."""
    words, masking, sentinels = build_tokenizer(pieces), build_encoder_tokenizer(pieces), build_seq2seq_tokenizer(pieces)
    llama = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        **_common(words),
    )
    gpt2 = GPT2Config(n_embd=width, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, **_common(words))
    roberta = RobertaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT + 1,  # position 0 stands for padding
        type_vocab_size=1,
        **_common(masking),
    )
    t5 = T5Config(  # type: ignore[call-arg]  # its fields are written in its config.json all the same
        d_model=width,
        d_kv=width // HEADS,
        d_ff=3 * width,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=HEADS,
        n_positions=CONTEXT,
        decoder_start_token_id=sentinels.pad_token_id,
        **_common(sentinels),
    )
    made = {
        "tiny": (llama, words, "LlamaForCausalLM"),
        "tiny_gpt2": (gpt2, words, "GPT2LMHeadModel"),
        "tiny_roberta": (roberta, masking, "RobertaForMaskedLM"),
        "tiny_t5": (t5, sentinels, "T5ForConditionalGeneration"),
    }
    for config, _, architecture in made.values():
        config.architectures = [architecture]
    return {name: Blueprint(config, tokenizer) for name, (config, tokenizer, _) in made.items()}


def _common(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m alignlab.models.embedded", description="Writes the blueprints.")
    parser.add_argument("--to", type=Path, default=EMBEDDED, help="where the folders go; default: into the package")
    parser.add_argument("--width", type=int, default=WIDTH, help=f"of the hidden states, a multiple of {HEADS}")
    parser.add_argument("--text", type=Path, nargs="+", help="plain text that the tokenizers learn from")
    parser.add_argument("--pieces", type=int, default=PIECES, help="how many they learn, bytes and special tokens among them")
    given = parser.parse_args()
    texts = (text for file in given.text or () for _, text in plain(file, None))
    learned = learned_pieces(texts, given.pieces) if given.text else None
    for name, blueprint in blueprints(given.width, learned).items():
        blueprint.config.save_pretrained(given.to / name)
        blueprint.tokenizer.save_pretrained(given.to / name)
