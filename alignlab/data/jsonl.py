"""A user's own file: one JSON object a line, pairs or single responses with a label or a score."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from alignlab.data.config import JsonlConfig
from alignlab.data.published import hh_pairs as dialogue_pairs
from alignlab.data.rows import pointwise, read, text
from alignlab.data.source import Source, Split
from alignlab.errors import ConfigError, DataError
from alignlab.records import Record


def build(config: JsonlConfig) -> Source:
    """From data.path: one file for training, and data.test beside it, or a folder with both."""
    return Source(
        config.name,
        {
            "train": partial(_split, config, config.train, config.limit),
            "test": partial(_split, config, config.test, config.test_limit),
        },
    )


def offers(config: JsonlConfig) -> frozenset[str]:
    """`pairs` and `chosen`, or `chosen` with `labels`, `scores` and `attributes`, by the first line of the training file."""
    if config.path is None:
        raise ConfigError("data=jsonl needs data.path: a folder that holds the files named by data.train and data.test.")
    for _, fields in read(config.files(config.train), limit=1):
        held = {f"{key}s" for key in ("label", "score") if key in fields} | ({"attributes"} & fields.keys())
        return frozenset({"chosen", *({"pairs"} if "chosen" in fields else held)})
    raise ConfigError(f"data.path={config.path}: the training file is empty; give it at least one line.")


def _split(config: JsonlConfig, pattern: str, limit: int | None) -> Split:
    lines = list(read(config.files(pattern), limit))
    if lines and "prompt" not in lines[0][1]:
        return dialogue_pairs(lines, config.unusable_pairs)
    return Split(tuple(_records(lines)))


def _records(lines: Iterable[tuple[str, dict[str, Any]]]) -> Iterable[Record]:
    for row, fields in lines:
        if "chosen" in fields:
            yield Record.pair(row, text(fields, "prompt", row), text(fields, "chosen", row), text(fields, "rejected", row))
        elif "response" in fields:
            yield pointwise(row, fields)
        else:
            raise DataError(f"{row}: needs 'chosen' and 'rejected', or 'response'; the line has {', '.join(fields)}.")
