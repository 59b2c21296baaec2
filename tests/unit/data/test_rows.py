"""JSON lines: every complaint names its file and its line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from alignlab.data.files import read
from alignlab.data.rows import Reader, said, spoken, text
from alignlab.errors import DataError, UnusableRowError
from alignlab.records import Record, Response, Turn


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_rows_are_named_by_file_and_line_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"x": 1}\n\n{"x": 2}\n')

    rows = list(read([path], None))

    assert rows == [("a.jsonl:1", {"x": 1}), ("a.jsonl:3", {"x": 2})]


def test_rows_of_files_of_one_name_are_named_by_their_folders_too(tmp_path: Path) -> None:
    paths = [tmp_path / "all" / folder / "a.jsonl" for folder in ("one", "two/deep")]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_text(f'{{"x": {number}}}\n')

    rows = list(read(paths))

    assert rows == [("one/a.jsonl:1", {"x": 0}), ("two/deep/a.jsonl:1", {"x": 1})]


def test_gzipped_lines_are_read_like_plain_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress('{"x": "é"}\n'.encode()))

    rows = list(read([path], None))

    assert rows == [("a.jsonl.gz:1", {"x": "é"})]


def test_files_follow_each_other_and_the_limit_counts_rows_of_all(tmp_path: Path) -> None:
    first = written(tmp_path, "a.jsonl", '{"x": 1}\n{"x": 2}\n')
    second = written(tmp_path, "b.jsonl", '{"x": 3}\n{"x": 4}\n')

    rows = list(read([first, second], 3))

    assert [name for name, _ in rows] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]


def test_a_line_behind_the_limit_is_not_parsed(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"x": 1}\nbroken\n')

    rows = list(read([path], 1))

    assert len(rows) == 1


def test_a_line_that_does_not_parse_names_file_line_and_column(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"x": 1}\n{"x": }\n')

    with pytest.raises(DataError, match=r"a\.jsonl:2: not valid JSON \(Expecting value at column 7\)"):
        list(read([path], None))


def test_a_line_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", "[1, 2]\n")

    with pytest.raises(DataError, match=r"a\.jsonl:1: a line must be a JSON object but is list"):
        list(read([path], None))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl.gz", b"not gzip"), ("a.jsonl.gz", gzip.compress(b'{"x": 1}\n' * 99)[:-12]), ("a.jsonl", b"\xff\xfe{")],
    ids=["no gzip", "gzip cut short", "half of a character of UTF-16"],
)
def test_a_file_that_cannot_be_read_as_text_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError, match=rf"{name}: cannot be read"):
        list(read([path], None))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"other": "b"}, "row: 'prompt' must be a text but is NoneType; the line has other"),
        ({"prompt": 3}, "row: 'prompt' must be a text but is int"),
        ({"prompt": " \n"}, "row: 'prompt' is empty"),
    ],
)
def test_a_text_that_is_missing_wrong_or_empty_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        text(fields, "prompt", "row")


@pytest.mark.parametrize(
    ("more", "response"),
    [
        ({"label": "good"}, Response("r", label="good")),
        ({"label": 1}, Response("r", label="1")),
        ({"score": 0.5}, Response("r", score=0.5)),
        ({"score": 3, "label": "x"}, Response("r", label="x", score=3)),
        ({}, Response("r")),
    ],
)
def test_a_pointwise_row_keeps_its_label_and_its_score(more: dict[str, Any], response: Response) -> None:
    records = Reader().records("row", {"prompt": "p", "response": "r", **more})

    assert records == (Record("row", "p", (response,)),)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="row: 'score' must be a finite number but is 'high'"):
        Reader().records("row", {"prompt": "p", "response": "r", "score": "high"})


def test_two_dialogues_share_everything_up_to_the_last_answer() -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"

    (record,) = Reader().records("row", {"chosen": start + " yes", "rejected": start + " no"})

    assert record == Record.pair("row", start, " yes", " no")


def test_dialogues_with_different_prompts_are_no_pair() -> None:
    with pytest.raises(UnusableRowError, match="row: the prompts of chosen and rejected differ") as error:
        Reader().records("row", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: b"})

    assert error.value.reason == "prompts of the pair differ"


@pytest.mark.parametrize(
    ("dialogue", "sentence"),
    [
        ("no marker", "row: needs a 'prompt', or dialogues with 'Assistant:'"),
        ("\n\nHuman: a\n\nAssistant: ", "row: no answer behind the last 'Assistant:'"),
        ("", "row: needs a 'prompt', or dialogues with 'Assistant:'"),
    ],
)
def test_a_dialogue_without_a_last_answer_is_refused(dialogue: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Reader().records("row", {"chosen": dialogue, "rejected": "\n\nHuman: a\n\nAssistant: b"})


ONE, TWO = Turn("user", "a"), (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: a\n\nAssistant:", (ONE,)),
        ("Human: a\n\nAssistant: ", (ONE,)),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", TWO),
        ("Rules.\n\nHuman: a\n\nAssistant:", (Turn("system", "Rules."), ONE)),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant:", (Turn("user", "a\n\nb"),)),
        ("a", ()),
        ("\n\nHuman: a", ()),
        ("\n\nHuman: a\n\nAssistant: b", ()),
        ("\n\nAssistant: b\n\nHuman: a\n\nAssistant:", ()),
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant:", ()),
        ("Say 'Human: a' and\nAssistant:", ()),
    ],
)
def test_a_text_that_names_its_speakers_up_to_an_open_answer_has_turns(text: str, turns: tuple[Turn, ...]) -> None:
    assert spoken(text) == turns


def test_what_a_chat_template_leaves_out_of_a_dialogue_is_counted() -> None:
    reader = Reader()
    start = "\n\nHuman: a\n\nHuman: b\n\nAssistant:"

    (record,) = reader.records("row", {"chosen": start + " yes\n\nHuman: c", "rejected": start + " no"})

    assert said(record.prompt, record.responses[0].text) == "yes"
    assert {note: count for note, count in reader.notes.items() if count} == {
        "answers with a further turn behind them, which a chat template leaves out": 1,
        "with turns of one speaker in a row, which a chat template gets as one": 1,
    }
