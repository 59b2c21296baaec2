"""Rows as people have them, under chat templates: ids and labels are what apply_chat_template makes of the file's own words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignlab.data.local import jsonl
from alignlab.data.rows import TURN
from alignlab.records import Example, Turn
from tests.unit.data.forms import config
from tests.unit.models.chats import CASES

pytestmark = pytest.mark.real

Row = dict[str, Any]


def of_messages(messages: list[dict[str, str]]) -> list[Turn]:
    return [Turn(message["role"], message["content"]) for message in messages]


def last(value: Any) -> str:
    """The answer that a value of a row holds: a text, the last of some messages, or a single one."""
    message = value[-1] if isinstance(value, list) else value
    return message if isinstance(message, str) else message.get("content", message.get("value"))


def of_marked(text: str) -> list[Turn]:
    """The turns of an HH dialogue, its answer left out."""
    _, *pieces = TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Turn(roles[name], words.strip()) for name, words in zip(pieces[:-2:2], pieces[1:-2:2], strict=True)]


ASKED: dict[str, Callable[[Row], list[Turn]]] = {
    "chat": lambda row: [Turn("user", row["prompt"])],
    "conv_explicit": lambda row: of_messages(row["prompt"]),
    "conv_implicit": lambda row: of_messages(row["chosen"][:-1]),
    "system_col": lambda row: [Turn("system", row["system"]), Turn("user", row["prompt"])],
    "uf_multiturn": lambda row: of_messages(row["chosen"][:-1]),
    "sharegpt_rank": lambda row: [Turn("user", turn["value"]) for turn in row["conversations"]],
    "mix_dialog": lambda row: [Turn("user", row["prompt"])] if "prompt" in row else of_marked(row["chosen"]),
}
"""What a row of each folder asks, read off its columns by hand."""
WITH_SYSTEM = ("system_col", "uf_multiturn")
NO_SYSTEM = ("gemma", "llama2")
"""Templates that refuse a system turn."""
ASKABLE = [(name, folder) for name in CASES for folder in ASKED if not (name in NO_SYSTEM and folder in WITH_SYSTEM)]


@pytest.mark.parametrize(("name", "folder"), ASKABLE)
def test_every_row_is_what_the_template_writes(name: str, folder: str, shared: Path) -> None:
    case, codec = CASES[name], CASES[name].codec()
    rows = [json.loads(line) for line in (shared / "cases" / folder / "train.jsonl").read_text().splitlines()]
    records = jsonl(config(shared / "cases" / folder, unusable_pairs="drop")).split("train").records

    encoded = [
        codec.examples([Example(record.prompt, response.text) for response in record.responses], [record.row] * 2)
        for record in records
    ]

    expected = []
    for row in rows:
        answers = [last(row[side]) for side in ("chosen", "rejected")]
        if "prompt" not in row and isinstance(row["chosen"], str):
            answers = [answer.rpartition("\n\nAssistant: ")[2] for answer in answers]
        expected.append([case.ids([*ASKED[folder](row), Turn("assistant", answer)]) for answer in answers])
    found = [[(list(each.ids[: each.start]), list(each.ids[each.start :])) for each in pair] for pair in encoded]
    assert len(records) == len(rows)
    assert found == expected
