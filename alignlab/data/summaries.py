"""Summaries from feedback: a Reddit post and two summaries of it, of which a worker chose one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

from alignlab.data.config import SummariesConfig
from alignlab.data.rows import read, text
from alignlab.data.source import Source, Split
from alignlab.errors import DataError
from alignlab.records import Record

PLACE = re.compile(r"\{(subreddit|title|post)\}")
"""What a frame may hold: the name of a text of `info`."""


def build(config: SummariesConfig) -> Source:
    """From a local folder of *.jsonl(.gz) with the hub's columns, or from the hub."""
    return Source(
        config.name,
        {
            "train": partial(_split, config, config.train, "train", config.limit),
            "test": partial(_split, config, config.test, "validation", config.test_limit),
        },
    )


def pairs(lines: Iterable[tuple[str, dict[str, Any]]], frame: str) -> Split:
    """Records of {info, summaries, choice}, summaries as they stand, a leading space included; rows without a post, and equal
    or empty summaries, are left out, counted."""
    records: list[Record] = []
    left_out = {"no post: a news article": 0, "a summary is empty": 0, "both summaries are the same": 0}
    for row, fields in lines:
        info, (chosen, rejected) = _info(fields, row), _summaries(fields, row)
        if not str(info.get("post") or "").strip():
            left_out["no post: a news article"] += 1
        elif not chosen.strip() or not rejected.strip():
            left_out["a summary is empty"] += 1
        elif chosen == rejected:
            left_out["both summaries are the same"] += 1
        else:
            records.append(Record.pair(row, _framed(frame, info, row), chosen, rejected))
    return Split(tuple(records), {reason: count for reason, count in left_out.items() if count})


def _split(config: SummariesConfig, pattern: str, hub_split: str, limit: int | None) -> Split:
    from alignlab.data.hub import rows

    if config.path:
        return pairs(read(config.files(pattern), limit), config.frame)
    return pairs(rows(config.hub, hub_split, config.revision, limit, folder=config.subset), config.frame)


def _info(fields: dict[str, Any], row: str) -> dict[str, Any]:
    info = fields.get("info")
    if not isinstance(info, dict):
        raise DataError(
            f"{row}: 'info' must be an object with 'subreddit', 'title' and 'post' but is {type(info).__name__}; mend or remove"
            " the row."
        )
    return info


def _summaries(fields: dict[str, Any], row: str) -> tuple[str, str]:
    """The better summary and the other one."""
    summaries, choice = fields.get("summaries"), fields.get("choice")
    found = summaries if isinstance(summaries, list) else []
    texts = [summary["text"] for summary in found if isinstance(summary, dict) and isinstance(summary.get("text"), str)]
    if len(found) != 2 or len(texts) != 2:
        raise DataError(f"{row}: 'summaries' must be a list of two objects with a 'text' each; mend or remove the row.")
    if type(choice) is not int or choice not in (0, 1):
        raise DataError(f"{row}: 'choice' must be 0 or 1, which summary is better, but is {choice!r}; mend or remove the row.")
    return texts[choice], texts[1 - choice]


def _framed(frame: str, info: dict[str, Any], row: str) -> str:
    """The frame with its places filled in one pass, so that braces in a post stay what they are."""
    return PLACE.sub(lambda place: text(info, place[1], row), frame)
