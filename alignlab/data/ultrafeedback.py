"""UltraFeedback, binarised: a question, the best answer and a worse one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from alignlab.data.config import FramedConfig
from alignlab.data.rows import read, text
from alignlab.data.source import Source, Split
from alignlab.errors import DataError
from alignlab.records import Record


def build(config: FramedConfig) -> Source:
    """From a local folder of *.jsonl(.gz) with the hub's columns, or from the hub, where there may be no test split."""
    readers = {"train": partial(_split, config, config.train, config.train_split, config.limit)}
    if config.path or config.test_split is not None:
        readers["test"] = partial(_split, config, config.test, config.test_split or "", config.test_limit)
    return Source(config.name, readers)


def pairs(lines: Iterable[tuple[str, dict[str, Any]]], frame: str) -> Split:
    """Records of {prompt, chosen, rejected}, answers as chats of two turns; equal or empty answers are left out, counted."""
    records: list[Record] = []
    left_out = {"an answer is empty": 0, "both answers are the same": 0}
    for row, fields in lines:
        chosen, rejected = _answer(fields, "chosen", row), _answer(fields, "rejected", row)
        if not chosen.strip() or not rejected.strip():
            left_out["an answer is empty"] += 1
        elif chosen == rejected:
            left_out["both answers are the same"] += 1
        else:
            records.append(Record.pair(row, frame.replace("{prompt}", text(fields, "prompt", row)), chosen, rejected))
    return Split(tuple(records), {reason: count for reason, count in left_out.items() if count})


def _split(config: FramedConfig, pattern: str, hub_split: str, limit: int | None) -> Split:
    from alignlab.data.hub import rows

    lines = read(config.files(pattern), limit) if config.path else rows(config.hub, hub_split, config.revision, limit)
    return pairs(lines, config.frame)


def _answer(fields: dict[str, Any], key: str, row: str) -> str:
    turns = fields.get(key)
    if isinstance(turns, str):
        return turns
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and "content" in turns[-1]:
        return str(turns[-1]["content"])
    raise DataError(f"{row}: {key!r} must be a text or a list of turns with 'content'.")
