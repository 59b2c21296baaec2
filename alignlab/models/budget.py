"""How many texts fit a pass: one budget in bytes for all passes that keep no gradients, and what a model takes of it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

GIB = 2**30
LOGIT_BYTES = 48
"""Of an entry of a row's logits while a token is drawn: as the model gives it, in float32, processed, sorted, in float64."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model takes. `weights`: all of them; `cache`: keys and values of one token of one row; `activations`: what
    one block holds of a token while it is computed; `logits`: of one row while its next token is drawn."""

    weights: int
    cache: int
    activations: int
    logits: int

    @staticmethod
    def of(model: PreTrainedModel, itemsize: int) -> Footprint:
        """From a model's config, weights loaded or not; `itemsize` is the size of a number in bytes."""
        config = model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_attention_heads", None) or 1
        wide = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads
        keyed = getattr(config, "num_key_value_heads", None) or heads
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return Footprint(
            weights=model.num_parameters() * itemsize,
            cache=2 * config.num_hidden_layers * keyed * wide * itemsize,
            # The residual, its norm, queries, keys, values and their mixture; gate, up and their product.
            activations=(6 * config.hidden_size + 3 * inner) * itemsize,
            logits=LOGIT_BYTES * config.vocab_size,
        )


@dataclass(frozen=True)
class Need:
    """What decoding takes, in bytes: `texts` together, each in `rows` rows (one per pass of a mixture and beam) of at most
    `tokens` tokens."""

    texts: int
    rows: int
    tokens: int
    cache: int
    logits: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, weights left out."""
        return self.cache + self.logits + self.activations

    def sentence(self, weights: int) -> str:
        """For a plan."""
        named = {"weights": weights, "caches": self.cache, "logits": self.logits, "activations": self.activations}
        parts = " + ".join(f"{name} {taken / GIB:.3g}" for name, taken in named.items())
        whole = (weights + self.total) / GIB
        return f"{self.texts} texts at a time, {self.rows} x {self.tokens} tokens each: {parts} = {whole:.3g} GiB, estimated"


@dataclass(frozen=True)
class Budget:
    """What passes without gradients may take beside the weights, `gib` GiB of it; None = as much as they like."""

    footprint: Footprint
    gib: float | None = None

    def texts(self, prompt: int, new: int, rows: int, at_most: int) -> int:
        """Texts that are decoded together, each in so many rows: `prompt` tokens and `new` ones behind them."""
        return self._fitting(self.need(1, prompt, new, rows).total, at_most)

    def groups(self, members: int, tokens: int, at_most: int) -> int:
        """Groups that are scored together, of so many members of at most so many tokens. Logits exist for a chunk of fixed
        size, and no cache is kept."""
        return self._fitting(members * tokens * self.footprint.activations, at_most)

    def need(self, texts: int, prompt: int, new: int, rows: int) -> Need:
        """What decoding takes at its last step; activations are those of the prompts, which are read in one pass."""
        each = self.footprint
        count = texts * rows
        cache = count * (prompt + new) * each.cache
        return Need(texts, rows, prompt + new, cache, count * each.logits, count * prompt * each.activations)

    def _fitting(self, each: int, at_most: int) -> int:
        return at_most if self.gib is None else max(1, min(at_most, int(self.gib * GIB) // max(1, each)))
