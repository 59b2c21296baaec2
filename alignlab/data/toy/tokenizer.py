"""The tokenizer of the tiny models: each word of the toy world is one token, any other text falls back to bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignlab.data.toy.stories import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, MASK = "<pad>", "<bos>", "</s>", "<mask>"
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(20))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The same tokenizer on every call: three specials, 256 bytes, the words. It adds no special tokens by itself."""
    return _built([])


def build_encoder_tokenizer() -> PreTrainedTokenizerFast:
    """The same with a mask token behind the words; it writes <bos> text </s>, or <bos> text </s> second text </s>."""
    return _built([MASK], single="<bos> $A </s>", pair="<bos> $A </s> $B </s>", mask_token=MASK)


def build_seq2seq_tokenizer() -> PreTrainedTokenizerFast:
    """The same with sentinels behind the words; it writes text </s>."""
    return _built([*SENTINELS], single="$A </s>", pair="$A $B </s>", extra_special_tokens=list(SENTINELS))


def _built(further: list[str], single: str = "", pair: str = "", **special: Any) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = ["".join(piece for piece, _ in bytewise.pre_tokenize_str(word)) for word in vocabulary()]
    pieces = dict.fromkeys([PAD, BOS, EOS, *sorted(bytewise.alphabet()), *words, *further])
    # ignore_merges: a word that is in the vocabulary is taken whole; without merges, any other is spelt in bytes
    model = models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = bytewise
    tokenizer.decoder = decoders.ByteLevel()
    if single:
        ends = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        **special,
    )
