"""The tokenizer of the tiny models: each word of the toy world is one token, any other text falls back to bytes. And one of the
same form whose pieces are learned from other texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignlab.data.toy.world import vocabulary

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, MASK = "<pad>", "<bos>", "</s>", "<mask>"
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(20))


@dataclass(frozen=True)
class Pieces:
    """What a tokenizer knows beside its further special tokens: ids by piece, 0 to 2 being <pad>, <bos> and </s>; and which two
    pieces become one, the most frequent first."""

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]] = ()


def toy_pieces() -> Pieces:
    """256 bytes, and every word of the toy world."""
    bytewise = _bytewise()
    words = ["".join(piece for piece, _ in bytewise.pre_tokenize_str(word)) for word in vocabulary()]
    pieces = dict.fromkeys([PAD, BOS, EOS, *sorted(bytewise.alphabet()), *words])
    return Pieces({piece: index for index, piece in enumerate(pieces)})


def learned_pieces(texts: Iterable[str], count: int) -> Pieces:
    """Byte pair encoding (arXiv 1508.07909) of texts: at most `count` ids, the 3 special tokens and 256 bytes among them."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _bytewise()
    trainer = trainers.BpeTrainer(
        vocab_size=count,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(_bytewise().alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    return Pieces(learned["vocab"], [(first, second) for first, second in learned["merges"]])


def build_tokenizer(pieces: Pieces | None = None) -> PreTrainedTokenizerFast:
    """The same tokenizer on every call: three specials, 256 bytes, the words; or these pieces. It adds no special tokens by
    itself."""
    return _built(pieces, [])


def build_encoder_tokenizer(pieces: Pieces | None = None) -> PreTrainedTokenizerFast:
    """The same with a mask token behind the words; it writes <bos> text </s>, or <bos> text </s> second text </s>."""
    return _built(pieces, [MASK], single="<bos> $A </s>", pair="<bos> $A </s> $B </s>", mask_token=MASK)


def build_seq2seq_tokenizer(pieces: Pieces | None = None) -> PreTrainedTokenizerFast:
    """The same with sentinels behind the words; it writes text </s>."""
    return _built(pieces, [*SENTINELS], single="$A </s>", pair="$A $B </s>", extra_special_tokens=list(SENTINELS))


def _bytewise() -> ByteLevel:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel(add_prefix_space=False, use_regex=True)


def _built(
    pieces: Pieces | None, further: list[str], single: str = "", pair: str = "", **special: Any
) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    known = toy_pieces() if pieces is None else pieces
    ids = {**known.ids, **{token: len(known.ids) + place for place, token in enumerate(further)}}
    # ignore_merges: a word that is in the vocabulary is taken whole; without merges, any other is spelt in bytes
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=list(known.merges), ignore_merges=True))
    tokenizer.pre_tokenizer = _bytewise()
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
