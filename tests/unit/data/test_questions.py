"""SuperGLUE and SQuAD from files: what is asked, what answers, and which rows go where; and frames of other data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignlab.data.config import QuestionsConfig
from alignlab.data.questions import TASKS, offers, questions
from alignlab.errors import ConfigError, DataError
from tests.unit.conftest import HUB

SPANS = {"text": "Mark told Pete he left .", "span1_index": 0, "span1_text": "Mark", "span2_index": 3, "span2_text": "he"}
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "boolq": ({"question": "is it", "passage": "it is", "label": 1}, "{question}? {passage}", "is it? it is"),
    "multirc": (
        {"paragraph": "<b>Sentence 1: </b>A cat.<br>It sat.", "question": "Who", "answer": "cat", "label": 0},
        "{paragraph} {question} {answer}",
        "Sentence 1: A cat. It sat. Who cat",
    ),
    "wsc": ({**SPANS, "label": 1}, "{text}", "* Mark * told Pete # he # left ."),
    "record": (
        {"query": "@placeholder sat", "passage": "A cat sat", "entities": ["cat", "dog"], "answers": ["cat", "the cat"]},
        "{query} {entities}",
        "@placeholder sat cat, dog",
    ),
    "squad": ({"question": "Who", "context": "A cat", "answers": {"text": ["A cat", "A cat"]}}, "{question}", "Who"),
}
ANSWERS = {"boolq": ["1"], "multirc": ["0"], "wsc": ["1"], "record": ["cat", "the cat"], "squad": ["A cat"]}


def config(path: Path, task: str, frame: str = "", **changes: Any) -> QuestionsConfig:
    own = {"name": "super_glue", "path": str(path), "train": "train*", "test": "validation*"}
    made = QuestionsConfig(**HUB, **own, task=task, split_seed=42, frames={task: frame or ROWS[task][1]})
    return replace(made, **changes)


def written(folder: Path, row: dict[str, Any], train: int, validation: int = 4) -> Path:
    for name, count in (("train", train), ("validation", validation)):
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * count)
    return folder


@pytest.mark.parametrize("task", ROWS)
def test_a_row_is_written_into_its_frame_and_answered(task: str, tmp_path: Path) -> None:
    row, _, asked = ROWS[task]
    train = 1001 if task in ("multirc", "record", "squad") else 1

    source = questions(config(written(tmp_path, row, train), task))

    records = source.split("train").records
    assert {record.prompt for record in records} == {asked}
    assert [record.responses[0].text for record in records] == ANSWERS[task]
    assert len(source.split("test").records) == (4 if train > 1 else 2)
    assert len(source.split("validation").records) >= (1000 if train > 1 else 2)
    assert (source.labels is None) == (not TASKS[task].classes) == ("label set" not in offers(config(tmp_path, task)))


def test_a_label_outside_the_classes_a_lost_column_and_a_lost_frame_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, {"question": "a", "passage": "b", "label": 2}, 1)

    with pytest.raises(DataError, match="label 2 is none of the classes false, true"):
        questions(config(folder, "boolq")).split("train")
    with pytest.raises(DataError, match="has no column 'hypothesis' of task cb"):
        questions(config(written(tmp_path, {"premise": "a", "label": 0}, 1), "cb", "{premise}")).split("train")
    with pytest.raises(ConfigError, match=r"data\.frames has none for task wic; add one"):
        config(folder, "wic", "x", frames={}).check("data")


def test_a_frame_asks_for_columns_that_are_there(tmp_path: Path) -> None:
    folder = written(tmp_path, {"question": "a", "passage": "b", "label": 1}, 1)

    with pytest.raises(DataError, match="has no column 'title', which the frame asks for"):
        questions(config(folder, "boolq", "{title}")).split("train")
