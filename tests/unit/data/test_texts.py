"""Texts to pretrain on: how files become pieces, what is left out, and what tokenizers learn from them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from alignlab.data.config import TextsConfig
from alignlab.data.local import texts
from alignlab.data.source import Split
from alignlab.data.toy.tokenizer import build_seq2seq_tokenizer, learned_pieces
from alignlab.errors import AlignlabError, ConfigError, DataError
from tests.unit.conftest import DATA


def corpus(path: Path | None, **changes: Any) -> Split:
    values = {**DATA, "name": "texts", "path": path and str(path), "corpus": "*", "separator": None, "text": "text", "words": 4}
    config = TextsConfig(**{**values, **changes})
    config.check("data")
    return texts(config).split("corpus")


def whole(split: Split) -> list[str]:
    return [record.prompt + record.responses[0].text for record in split.records]


def test_a_plain_text_is_cut_into_pieces_of_so_many_words(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("One two,\nthree  four five\nsix.\n")

    split = corpus(tmp_path)

    assert whole(split) == ["One two,\nthree  four", "five\nsix."]
    assert [record.prompt for record in split.records] == ["One", "five"]
    assert [record.row for record in split.records] == ["a.txt.gz:1/0", "a.txt.gz:1/1"]


def test_a_separator_stands_between_two_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One two\n<|end|>\nthree four five six seven\n<|end|>\n")

    split = corpus(tmp_path, separator="<|end|>")

    assert whole(split) == ["One two", "three four five six"]
    assert split.left_out == {"a text or its rest is one word": 1, "a text is empty": 1}
    assert split.records[1].row == "a.txt:3/0"


def test_rows_have_their_text_in_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"n": 1, "story": text}) + "\n" for text in ("One two", "Three four")))

    assert whole(corpus(tmp_path, text="story", limit=1)) == ["One two"]


@pytest.mark.parametrize(
    ("content", "changes", "error", "sentence"),
    [
        ("One", {}, DataError, "no text has two words; look at the files"),
        ("One two", {"corpus": "*.jsonl"}, ConfigError, r"holds no file '\*\.jsonl' but .*; set data\.corpus\."),
        ("One \0 two", {}, DataError, r"a\.txt:1: 'text' holds a NUL character"),
        ("One\n\udcff", {}, DataError, r"a\.txt:2: holds the byte 0xff at column 1, which is no UTF-8"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    content: str, changes: dict[str, Any], error: type[AlignlabError], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(content, errors="surrogateescape")

    with pytest.raises(error, match=sentence):
        corpus(tmp_path, **changes)


def test_a_column_and_a_path_have_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"story": "One two"}\n')

    with pytest.raises(ConfigError, match=r"a\.jsonl:1: has no column 'text' \(it has story\); set data\.text"):
        corpus(tmp_path)
    with pytest.raises(ConfigError, match=r"data=texts needs data\.path"):
        corpus(None)


def test_a_tokenizer_learns_frequent_words_and_keeps_every_byte() -> None:
    pieces = learned_pieces(["the kite and the kite and the kite"] * 3, 300)

    tokenizer = build_seq2seq_tokenizer(pieces)

    # he the Ġthe, it kit Ġkit Ġkite, an Ġan Ġand: ten pieces beside 3 special tokens and 256 bytes; then nothing is left
    assert len(pieces.ids) == 269
    assert len(tokenizer) == 289  # 20 sentinels behind them
    assert tokenizer.tokenize("the kite <extra_id_19>")[-1] == "<extra_id_19>"
    assert "Ġkite" in tokenizer.tokenize("a kite")
    assert tokenizer.decode(tokenizer("Où est-il ?")["input_ids"], skip_special_tokens=True) == "Où est-il ?"
