"""The tokenizer of the tiny models: each word of the toy world is one token, any other text falls back to bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.data.toy.grammar import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "</s>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The same tokenizer on every call: three specials, 256 bytes, the words. It adds no special tokens by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = ["".join(piece for piece, _ in bytewise.pre_tokenize_str(word)) for word in vocabulary()]
    pieces = dict.fromkeys([PAD, BOS, EOS, *sorted(bytewise.alphabet()), *words])
    # ignore_merges: a word that is in the vocabulary is taken whole; without merges, any other is spelt in bytes
    model = models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = bytewise
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
