"""Summaries from feedback: a post in a frame, two summaries, and a choice between them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from alignlab.config import parse
from alignlab.data import SOURCES
from alignlab.data.config import SummariesConfig
from alignlab.data.published import summaries as build
from alignlab.data.published import summary_pairs as pairs
from alignlab.errors import ConfigError, DataError
from alignlab.records import Record
from tests.unit.conftest import HUB, checked

FRAME = "SUBREDDIT: r/{subreddit}\nTITLE: {title}\nPOST: {post}\nTL;DR:"
INFO = {"id": "t3_1", "post": "My cat left.", "title": "Cat", "subreddit": "pets", "site": None, "article": None}
NEWS = {"id": "a1", "post": None, "title": "Vote", "subreddit": None, "site": "cnn", "article": "They voted."}


def comparison(first: str = " one", second: str = " two", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "info": INFO,
        "summaries": [{"text": first, "policy": "ref", "note": None}, {"text": second, "policy": "sup4", "note": "short"}],
        "choice": 0,
        "worker": "w",
        "batch": "batch9",
        "split": "train",
        "extra": {"confidence": 8},
    }
    return {**values, **changes}


def config(path: Path | None = None, **changes: Any) -> SummariesConfig:
    values: dict[str, Any] = {
        **HUB,
        "name": "summaries",
        "max_tokens": 512,
        "too_long": "drop",
        "path": path and str(path),
        "train": "*train*.jsonl*",
        "test": "*valid*.jsonl*",
        "hub": "someone/summaries",
        "revision": "a-branch",
        "subset": "comparisons",
        "frame": FRAME,
    }
    return SummariesConfig(**{**values, **changes})


@pytest.mark.parametrize(("choice", "chosen", "rejected"), [(0, " one", " two"), (1, " two", " one")])
def test_the_post_is_framed_and_the_choice_names_the_better_summary(choice: int, chosen: str, rejected: str) -> None:
    split = pairs([("row", comparison(choice=choice))], FRAME)

    prompt = "SUBREDDIT: r/pets\nTITLE: Cat\nPOST: My cat left.\nTL;DR:"
    assert split.records == (Record.pair("row", prompt, chosen, rejected),)
    assert split.left_out == {}


def test_braces_in_a_post_stay_what_they_are() -> None:
    info = {"subreddit": "{title}", "title": "{post} {0}", "post": "{subreddit} {title} {post} {} \\1"}

    split = pairs([("row", comparison(info=info))], FRAME)

    assert split.records[0].prompt == "SUBREDDIT: r/{title}\nTITLE: {post} {0}\nPOST: {subreddit} {title} {post} {} \\1\nTL;DR:"


def test_a_frame_asks_only_for_what_it_holds() -> None:
    split = pairs([("row", comparison(info={"post": "My cat left."}))], "{post}\nTL;DR:")

    assert split.records[0].prompt == "My cat left.\nTL;DR:"


def test_rows_without_a_post_are_left_out_and_counted() -> None:
    rows = [
        ("1", comparison(info=NEWS)),
        ("2", comparison(info={"title": "Vote", "article": "They voted."})),
        ("3", comparison(info={**INFO, "post": " \n"})),
        ("4", comparison()),
    ]

    split = pairs(rows, FRAME)

    assert [record.row for record in split.records] == ["4"]
    assert split.left_out == {"no post: a news article": 3}


def test_empty_and_equal_summaries_are_left_out_and_counted() -> None:
    rows = [
        ("1", comparison(" ", " two")),
        ("2", comparison(" one", "")),
        ("3", comparison(" same", " same")),
        ("4", comparison()),
    ]

    split = pairs(rows, FRAME)

    assert [record.row for record in split.records] == ["4"]
    assert split.left_out == {"a summary is empty": 2, "both summaries are the same": 1}


@pytest.mark.parametrize("choice", [None, 2, -1, 1.0, True, "1"])
def test_a_choice_other_than_0_or_1_is_refused_with_its_row(choice: object) -> None:
    with pytest.raises(DataError, match=r"row 7: 'choice' must be 0 or 1, .* but is .*; mend or remove the row\."):
        pairs([("row 7", comparison(choice=choice))], FRAME)


@pytest.mark.parametrize(
    "summaries",
    [
        None,
        [],
        [{"text": "one"}],
        [{"text": "one"}] * 3,
        [{"text": "one"}, {"text": "two"}, None],
        [{"text": "one"}, {"note": "two"}],
        [{"text": "one"}, {"text": None}],
        ["one", "two"],
        {"text": ["one", "two"]},
    ],
    ids=["none", "empty", "one", "three", "two and nothing", "no text", "null text", "bare texts", "columns"],
)
def test_summaries_that_are_not_two_texts_are_refused_with_their_row(summaries: object) -> None:
    with pytest.raises(DataError, match=r"row 7: 'summaries' must be a list of two objects .*; mend or remove the row\."):
        pairs([("row 7", comparison(summaries=summaries))], FRAME)


@pytest.mark.parametrize(("info", "kind"), [(None, "NoneType"), ("My cat left.", "str")])
def test_a_row_without_its_info_is_refused(info: object, kind: str) -> None:
    with pytest.raises(DataError, match=rf"row 7: 'info' must be an object .* but is {kind}; mend or remove the row\."):
        pairs([("row 7", comparison(info=info))], FRAME)


def test_a_post_without_the_title_that_the_frame_holds_is_refused_with_its_row() -> None:
    with pytest.raises(DataError, match="row 7: 'title' must be a text but is NoneType"):
        pairs([("row 7", comparison(info={**INFO, "title": None}))], FRAME)


def test_plain_and_gzipped_files_of_a_folder_are_read(tmp_path: Path) -> None:
    line = json.dumps(comparison())
    (tmp_path / "train.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    (tmp_path / "validation.jsonl.gz").write_bytes(gzip.compress(line.encode()))

    source = build(config(tmp_path, limit=1))

    assert [record.row for record in source.split("train").records] == ["train.jsonl:1"]
    assert [record.row for record in source.split("test").records] == ["validation.jsonl.gz:1"]


def test_the_hub_is_asked_for_one_subset_at_one_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {
        ("someone/summaries", "comparisons", "train", "a-branch"): [comparison()] * 2,
        ("someone/summaries", "comparisons", "validation", "a-branch"): [comparison(info=NEWS), comparison()],
    }
    monkeypatch.setattr(
        "datasets.load_dataset", lambda name, data_dir, split, revision: tables[name, data_dir, split, revision]
    )

    source = build(config(limit=1))

    assert [record.row for record in source.split("train").records] == ["someone/summaries/comparisons/train:1"]
    assert [record.row for record in source.split("test").records] == ["someone/summaries/comparisons/validation:2"]
    assert source.split("test").left_out == {"no post: a news article": 1}


@pytest.mark.parametrize("frame", ["no place", "{post} {post}", "{title}"])
def test_a_frame_without_exactly_one_post_is_refused(frame: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.frame=.* must hold \{post\} exactly once"):
        checked("data", config(frame=frame))


def test_the_config_holds_the_frame_with_its_line_breaks(composed: Callable[..., DictConfig]) -> None:
    data = parse(composed("data=summaries")).data

    assert isinstance(data, SummariesConfig)
    assert data.frame == FRAME


def test_the_comparisons_are_pairs_with_a_chosen_side() -> None:
    assert SOURCES["summaries"].provides(config()) == {"pairs", "chosen"}
