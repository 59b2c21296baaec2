"""Anthropic HH-RLHF: pairs of dialogues that differ in their last answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

from alignlab.data.config import HhConfig
from alignlab.data.rows import dialogue_pair, read, text
from alignlab.data.source import Source, Split
from alignlab.errors import UnusablePairError
from alignlab.records import Record


def build(config: HhConfig) -> Source:
    """From a local folder of *.jsonl(.gz), or from the hub."""
    return Source(
        config.name,
        {
            "train": partial(_split, config, config.train, "train", config.limit),
            "test": partial(_split, config, config.test, "test", config.test_limit),
        },
    )


def pairs(lines: Iterable[tuple[str, dict[str, Any]]], unusable_pairs: str) -> Split:
    """Records of dialogue pairs; those that cannot be used are an error, or are left out and counted by reason."""
    records: list[Record] = []
    left_out: Counter[str] = Counter()
    for row, fields in lines:
        try:
            records.append(dialogue_pair(row, text(fields, "chosen", row), text(fields, "rejected", row)))
        except UnusablePairError as error:
            if unusable_pairs == "error":
                raise
            left_out[error.reason] += 1
    return Split(tuple(records), dict(left_out))


def _split(config: HhConfig, pattern: str, hub_split: str, limit: int | None) -> Split:
    lines = read(config.files(pattern), limit) if config.path else islice(_hub(config, hub_split, limit), limit)
    return pairs(lines, config.unusable_pairs)


def _hub(config: HhConfig, split: str, limit: int | None) -> Iterable[tuple[str, dict[str, Any]]]:
    from alignlab.data.hub import rows

    for subset in config.subsets:
        yield from rows(config.hub, split, config.revision, limit, folder=subset)
