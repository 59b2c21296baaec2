"""HH-RLHF: pairs of dialogues, from files or from the hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignlab.data.config import HhConfig
from alignlab.data.published import hh_pairs as pairs
from alignlab.data.published import hh_rlhf as build
from alignlab.errors import DataError
from alignlab.records import Record
from tests.unit.conftest import HUB

START = "\n\nHuman: a\n\nAssistant:"
GOOD = {"chosen": START + " yes", "rejected": START + " no"}
DIFFERING = {"chosen": START + " yes", "rejected": "\n\nHuman: b\n\nAssistant: no"}


def config(path: Path | None, **changes: Any) -> HhConfig:
    values: dict[str, Any] = {
        **HUB,
        "name": "hh_rlhf",
        "too_long": "drop",
        "path": path and str(path),
        "train": "*train*.jsonl*",
        "test": "*test*.jsonl*",
        "hub": "someone/pairs",
        "subsets": ["first", "second"],
        "unusable_pairs": "drop",
    }
    return HhConfig(**{**values, **changes})


def hub(**tables: list[dict[str, Any]]) -> Callable[..., list[dict[str, Any]]]:
    """A stand-in for datasets.load_dataset with a table per folder."""
    return lambda name, data_dir, split, revision: tables[data_dir]


def test_pairs_whose_prompts_differ_are_left_out_and_counted() -> None:
    split = pairs([("row 1", GOOD), ("row 2", DIFFERING)], "drop")

    assert split.records == (Record.pair("row 1", START, " yes", " no"),)
    assert split.left_out == {"prompts of the pair differ": 1}


def test_pairs_whose_prompts_differ_are_an_error_where_the_config_says_so() -> None:
    with pytest.raises(DataError, match=r"row 2: the prompts of chosen and rejected differ; set data.unusable_pairs=drop"):
        pairs([("row 1", GOOD), ("row 2", DIFFERING)], "error")


def test_a_split_without_unusable_pairs_has_nothing_left_out() -> None:
    assert pairs([("row 1", GOOD)], "drop").left_out == {}


def test_a_row_without_the_two_dialogues_is_refused_or_left_out() -> None:
    rows = [("row 1", {"chosen": START + " yes"}), ("row 2", GOOD)]

    with pytest.raises(DataError, match="row 1: has one answer of a pair and no 'rejected'; the line has chosen"):
        pairs(rows, "error")

    assert pairs(rows, "drop").left_out == {"an answer of the pair is missing": 1}


def test_an_empty_answer_is_left_out_and_counted() -> None:
    split = pairs([("row 1", {"chosen": START + " yes", "rejected": START}), ("row 2", GOOD)], "drop")

    assert split.left_out == {"an answer is empty": 1}
    assert len(split.records) == 1


def test_gzipped_files_of_a_folder_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.train.jsonl.gz", "a.train.jsonl.gz", "a.test.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(json.dumps(GOOD).encode()))

    source = build(config(tmp_path))

    assert [record.row for record in source.split("train").records] == ["a.train.jsonl.gz:1", "b.train.jsonl.gz:1"]
    assert [record.row for record in source.split("test").records] == ["a.test.jsonl.gz:1"]


def test_the_hub_is_read_folder_by_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", hub(first=[GOOD], second=[DIFFERING, GOOD]))

    split = build(config(None)).split("train")

    assert [record.row for record in split.records] == ["someone/pairs/first/train:1", "someone/pairs/second/train:2"]
    assert split.left_out == {"prompts of the pair differ": 1}


def test_the_limit_holds_for_all_folders_of_the_hub_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", hub(first=[GOOD] * 2, second=[GOOD] * 2))

    split = build(config(None, limit=3)).split("train")

    assert len(split.records) == 3


@pytest.mark.parametrize("silence", ["", "HF_HUB_OFFLINE is set; "])
def test_a_hub_that_cannot_be_reached_is_one_sentence_with_its_cause(silence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", bool(silence))
    monkeypatch.setattr("alignlab.commits.hub_commit", lambda *_: None)
    monkeypatch.setattr("alignlab.commits._unreachable", [])
    cause = ConnectionError("no route")

    def unreachable(*_: object, **__: object) -> None:
        raise cause

    monkeypatch.setattr("datasets.load_dataset", unreachable)

    with pytest.raises(
        DataError, match=rf"'someone/pairs' could not be read from the hub \({silence}ConnectionError: no route\)"
    ) as info:
        build(config(None)).split("train")

    assert "data.path" in str(info.value)
    assert info.value.__cause__ is cause
