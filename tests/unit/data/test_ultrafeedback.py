"""UltraFeedback: questions in a frame, answers as texts or as chats."""

from __future__ import annotations

from typing import Any

import pytest

from alignlab.data.config import FramedConfig
from alignlab.data.published import ultrafeedback as build
from alignlab.data.published import ultrafeedback_pairs as pairs
from alignlab.errors import ConfigError, DataError
from alignlab.records import Record
from tests.unit.conftest import HUB, checked

FRAME = "Human: {prompt}\n\nAssistant: "


def chat(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]


def config(**changes: Any) -> FramedConfig:
    values: dict[str, Any] = {
        **HUB,
        "name": "ultrafeedback",
        "max_tokens": 768,
        "too_long": "drop",
        "path": None,
        "train": "*train*",
        "test": "*test*",
        "hub": "someone/questions",
        "frame": FRAME,
        "train_split": "train_prefs",
        "test_split": "test_prefs",
    }
    return FramedConfig(**{**values, **changes})


@pytest.mark.parametrize(("chosen", "rejected"), [("yes", "no"), (chat("yes"), chat("no"))], ids=["texts", "chats"])
def test_the_question_is_framed_and_the_last_turns_are_the_answers(chosen: object, rejected: object) -> None:
    split = pairs([("row", {"prompt": "q", "chosen": chosen, "rejected": rejected})], FRAME)

    assert split.records == (Record.pair("row", "Human: q\n\nAssistant: ", "yes", "no"),)


def test_empty_and_equal_answers_are_left_out_and_counted() -> None:
    rows: list[tuple[str, dict[str, Any]]] = [
        ("1", {"prompt": "q", "chosen": chat("yes"), "rejected": chat(" ")}),
        ("2", {"prompt": "q", "chosen": chat("same"), "rejected": chat("same")}),
        ("3", {"prompt": "q", "chosen": chat("yes"), "rejected": chat("no")}),
    ]

    split = pairs(rows, FRAME)

    assert [record.row for record in split.records] == ["3"]
    assert split.left_out == {"an answer is empty": 1, "both answers are the same": 1}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "has one answer of a pair and no 'chosen'"),
        ([], "'chosen' must be a text or a list of turns"),
        ([{"role": "assistant"}], "a message of 'chosen' must have 'role' and 'content'"),
        (3, "'chosen' must be a text or a list of turns"),
    ],
)
def test_an_answer_of_another_form_is_refused_with_its_row(answer: object, said: str) -> None:
    with pytest.raises(DataError, match=f"row 7: {said}"):
        pairs([("row 7", {"prompt": "q", "chosen": answer, "rejected": "no"})], FRAME)


def test_the_splits_carry_the_names_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "q", "chosen": "yes", "rejected": "no"}]
    tables = {"train_prefs": rows * 2, "test_prefs": rows}
    monkeypatch.setattr("datasets.load_dataset", lambda name, data_dir, split, revision: tables[split])

    source = build(config(limit=1))

    assert [record.row for record in source.split("train").records] == ["someone/questions/train_prefs:1"]
    assert [record.row for record in source.split("test").records] == ["someone/questions/test_prefs:1"]


def test_a_hub_without_a_test_split_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "q", "chosen": chat("yes"), "rejected": chat("no"), "chosen-rating": 5.0}]
    monkeypatch.setattr("datasets.load_dataset", lambda name, data_dir, split, revision: {"train": rows}[split])

    source = build(config(train_split="train", test_split=None))

    assert [record.row for record in source.split("train").records] == ["someone/questions/train:1"]
    with pytest.raises(ConfigError, match="has no split 'test'; it has train"):
        source.split("test")


@pytest.mark.parametrize("frame", ["no place", "{prompt} {prompt}"])
def test_a_frame_without_exactly_one_prompt_is_refused(frame: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.frame=.* must hold \{prompt\} exactly once"):
        checked("data", config(frame=frame))
