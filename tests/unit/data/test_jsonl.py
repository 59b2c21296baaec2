"""A user's own file: pairs, dialogues or single responses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alignlab.data.local import jsonl as build
from alignlab.data.local import offers
from alignlab.errors import ConfigError, DataError
from alignlab.records import Record, Response
from tests.unit.data.forms import config as form_config

config = partial(form_config, test_share=0.1)
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def folder_of(tmp_path: Path, *lines: dict[str, Any]) -> Path:
    content = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "train.jsonl").write_text(content, encoding="utf-8")
    (tmp_path / "test.jsonl").write_text(json.dumps(PAIR) + "\n", encoding="utf-8")
    return tmp_path


def test_pairs_become_records_named_by_their_line(tmp_path: Path) -> None:
    source = build(config(folder_of(tmp_path, PAIR, {**PAIR, "prompt": "q"})))

    records = source.split("train").records

    assert records == (Record.pair("train.jsonl:1", "p", "c", "r"), Record.pair("train.jsonl:2", "q", "c", "r"))


def test_single_responses_keep_label_and_score(tmp_path: Path) -> None:
    lines = [{"prompt": "p", "response": "a", "label": "good"}, {"prompt": "p", "response": "b", "score": 2}]
    source = build(config(folder_of(tmp_path, *lines)))

    records = source.split("train").records

    assert [record.responses for record in records] == [(Response("a", label="good"),), (Response("b", score=2),)]


def test_dialogues_without_a_prompt_are_cut_at_their_last_answer(tmp_path: Path) -> None:
    start = "\n\nHuman: a\n\nAssistant:"
    source = build(config(folder_of(tmp_path, {"chosen": start + " yes", "rejected": start + " no"})))

    records = source.split("train").records

    assert records == (Record.pair("train.jsonl:1", start, " yes", " no"),)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            {"prompt": "p", "chosen": "c"},
            "train.jsonl:2: has one answer of a pair and no 'rejected'; the line has prompt, chosen; set data",
        ),
        ({"prompt": "p", "chosen": "c", "rejected": ""}, "train.jsonl:2: 'rejected' is empty"),
        (
            {"prompt": "p"},
            "train.jsonl:2: needs 'chosen' and 'rejected', or 'response', or 'messages'; the line has prompt. Name .*data.col",
        ),
        (
            {"chosen": "c", "rejected": "r"},
            "train.jsonl:2: needs a 'prompt', or dialogues with 'Assistant:'; the line has chosen, rejected",
        ),
    ],
)
def test_a_line_that_lacks_a_key_is_named(tmp_path: Path, line: dict[str, Any], sentence: str) -> None:
    source = build(config(folder_of(tmp_path, PAIR, line)))

    with pytest.raises(DataError, match=sentence):
        source.split("train")


def test_one_file_is_split_by_a_seeded_share_of_its_prompts(tmp_path: Path) -> None:
    lines = [{**PAIR, "prompt": f"q{number // 2}", "chosen": f"c{number}"} for number in range(40)]
    file = folder_of(tmp_path, *lines) / "train.jsonl"
    splits = [build(config(file, test_share=0.25, split_seed=seed)) for seed in (0, 0, 1)]

    train, test = (splits[0].split(name).records for name in ("train", "test"))

    assert len(test) == 10
    assert sorted(record.responses[0].text for record in (*train, *test)) == sorted(line["chosen"] for line in lines)
    assert {record.prompt for record in train}.isdisjoint(record.prompt for record in test)
    assert splits[1].split("test").records == test
    assert splits[2].split("test").records != test


def test_a_split_is_read_once(tmp_path: Path) -> None:
    source = build(config(folder_of(tmp_path, PAIR)))
    first = source.split("train")

    (tmp_path / "train.jsonl").unlink()

    assert source.split("train") is first


def test_an_unknown_split_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    source = build(config(folder_of(tmp_path, PAIR)))

    with pytest.raises(ConfigError, match="has no split 'corpus'; it has train, test"):
        source.split("corpus")


@pytest.mark.parametrize(
    ("line", "capabilities"),
    [(PAIR, {"pairs", "chosen"}), ({"prompt": "p", "response": "r", "label": "good"}, {"labels", "chosen"})],
)
def test_what_a_file_offers_is_read_from_its_first_line(tmp_path: Path, line: dict[str, Any], capabilities: set[str]) -> None:
    assert offers(config(folder_of(tmp_path, line))) == capabilities


def test_an_empty_training_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.jsonl: the file is empty"):
        offers(config(folder_of(tmp_path)))


def test_no_path_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data=jsonl needs data\.path"):
        offers(config(None))


@pytest.mark.parametrize(
    ("path", "pattern", "sentence"),
    [
        ("nowhere", "train*", "nowhere does not exist"),
        (".", "rows*", r"holds no file 'rows\*' but .*\.jsonl; set data.train and data.test, or data.path to one file"),
    ],
)
def test_a_path_without_its_files_is_refused(tmp_path: Path, path: str, pattern: str, sentence: str) -> None:
    folder_of(tmp_path, PAIR)

    with pytest.raises(ConfigError, match=sentence):
        config(tmp_path / path).files(pattern)
