"""The blueprints of the embedded models: shape and tokenizer, from which `method=pretrain` starts.

`python -m alignlab.embedded` writes config.json and the tokenizer of each into its folder; weights are not touched. With `--to
FOLDER` they go below that folder, and with `--width N` the models are narrower or wider.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from alignlab.data.toy.tokenizer import build_tokenizer
from alignlab.models.config import EMBEDDED

WIDTH, LAYERS, HEADS, CONTEXT = 96, 4, 4, 256


def blueprints(width: int = WIDTH) -> dict[str, PretrainedConfig]:
    """The shape of each embedded model, by name."""
    tokenizer = build_tokenizer()
    common = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    llama = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        **common,
    )
    gpt2 = GPT2Config(n_embd=width, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, **common)
    for config, architecture in ((llama, "LlamaForCausalLM"), (gpt2, "GPT2LMHeadModel")):
        config.architectures = [architecture]
    return {"tiny": llama, "tiny_gpt2": gpt2}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m alignlab.embedded", description="Writes the blueprints.")
    parser.add_argument("--to", type=Path, default=EMBEDDED, help="where the folders go; default: into the package")
    parser.add_argument("--width", type=int, default=WIDTH, help=f"of the hidden states, a multiple of {HEADS}")
    given = parser.parse_args()
    for name, config in blueprints(given.width).items():
        config.save_pretrained(given.to / name)
        build_tokenizer().save_pretrained(given.to / name)
