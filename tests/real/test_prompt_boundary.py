"""The prompt that is asked is the prompt that was trained, id by id, on 2,000 real pairs under tokenizers of every kind."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf

from alignlab.data.rows import said
from alignlab.errors import UnusableRowError
from alignlab.models.chat import Chat
from alignlab.models.text import Codec, Template
from alignlab.records import Example

pytestmark = pytest.mark.real

PAIRS = 2000
# HH's dialogues; UltraFeedback's, summaries' and the toy world's prompts; an instruction that ends in an empty line
FRAMES = ("{}", "Human: {}\n\nAssistant: ", "POST: {}\nTL;DR:", "{}\n", "### Instruction:\n{}\n\n### Response:\n\n", "{}")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST] {% else %}"
    "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
PLAIN = Template("{prompt}", chat=False, bos=False)
CHAT = Template("{prompt}", chat=True, bos=False)
LOSSLESS = ("gpt2", "chatml", "mistral", "inst", "stories260k")
"""Those whose ids give back every text of HH as it was."""


def gpt2(folder: Path) -> PreTrainedTokenizerBase:
    made = Tokenizer(BPE.from_file(str(folder / "gpt2.vocab.json"), str(folder / "gpt2.merges.txt")))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def chatml(folder: Path) -> PreTrainedTokenizerBase:
    made = gpt2(folder)
    made.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    made.chat_template = CHATML
    return made


def mistral(folder: Path) -> PreTrainedTokenizerBase:
    """A sentencepiece BPE, as transformers converts it: merges are all ways to join two pieces, those to earlier ones first."""
    pieces = _pieces(folder / "mistral-v1.tokenizer.model")
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in vocabulary
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    made = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def inst(folder: Path) -> PreTrainedTokenizerBase:
    made = mistral(folder)
    made.chat_template = INST
    return made


def unigram(folder: Path) -> PreTrainedTokenizerBase:
    """The other kind of sentencepiece model, which writes runs of white space as one."""
    made = Tokenizer(Unigram(_pieces(folder / "sentencepiece-test-1k.model"), unk_id=0))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def wordpiece(folder: Path) -> PreTrainedTokenizerBase:
    made = Tokenizer(WordPiece.from_file(str(folder / "bert-base-uncased.vocab.txt"), unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")


MADE = {"gpt2": gpt2, "chatml": chatml, "mistral": mistral, "inst": inst, "unigram": unigram, "wordpiece": wordpiece}
SHIPPED = {"stories260k": "stories260k", "byte361": "babyllama-byte361", "char105": "babyllama-char105"}


@cache
def codec(shared: Path, name: str) -> Codec:
    if name in SHIPPED:
        return Codec(AutoTokenizer.from_pretrained(shared / "models" / SHIPPED[name]), PLAIN)
    return Codec(MADE[name](shared / "data" / "tokenizers"), CHAT if name in ("chatml", "inst") else PLAIN)


@cache
def examples(shared: Path) -> tuple[Example, ...]:
    """Both answers of each pair; a frame takes the bare question, and answers without the space in front."""
    with gzip.open(shared / "data" / "hh-rlhf" / "helpful-single-turn.train-a.jsonl.gz", "rt", encoding="utf-8") as lines:
        pairs = [json.loads(line) for line, _ in zip(lines, range(PAIRS), strict=False)]
    made: list[Example] = []
    for number, pair in enumerate(pairs):
        frame = FRAMES[number % len(FRAMES)]
        for side in ("chosen", "rejected"):
            prompt, marker, answer = pair[side].rpartition("\n\nAssistant:")
            if frame == "{}":
                made.append(Example(prompt + marker, answer))
            else:
                made.append(Example(frame.format(prompt.removeprefix("\n\nHuman: ")), answer.strip()))
    return tuple(example for example in made if example.response.strip())


def taken(shared: Path, name: str) -> list[Example]:
    """Those that a chat template takes: it refuses dialogues that miss a speaker."""
    chat = codec(shared, name).chat
    return [each for each in examples(shared) if chat is None or is_taken(chat, each)]


def is_taken(chat: Chat, example: Example) -> bool:
    try:
        chat.response(example.prompt, example.response, "row")
    except UnusableRowError:
        return False
    return True


@pytest.mark.parametrize("name", [*MADE, *SHIPPED])
def test_a_prompt_is_asked_with_the_ids_that_it_was_trained_with(name: str, shared: Path) -> None:
    given = taken(shared, name)

    encoded = codec(shared, name).examples(given, ["row"] * len(given))
    asked = codec(shared, name).prompts([example.prompt for example in given])

    assert len(given) > 2 * PAIRS - 30
    assert [each.ids[: each.start] for each in encoded] == asked


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_ids_of_a_response_are_read_back_as_the_response(name: str, shared: Path) -> None:
    reader, given = codec(shared, name), taken(shared, name)

    encoded = reader.examples(given, ["row"] * len(given))

    back = [
        reader.answer(example.prompt, reader.continuation(each.ids[: each.start], each.ids[each.start : -1]))
        for example, each in zip(given, encoded, strict=True)
    ]
    assert back == [said(each.prompt, each.response) if reader.chat else each.response for each in given]


def _pieces(file: Path) -> list[tuple[str, float]]:
    """The vocabulary of a sentencepiece model, with scores."""
    model = import_protobuf().ModelProto()
    model.ParseFromString(file.read_bytes())
    return [(piece.piece, piece.score) for piece in model.pieces]
