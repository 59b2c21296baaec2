"""Anthropic HH-RLHF: pairs of dialogues that differ in their last answer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

from alignlab.data.config import HhConfig
from alignlab.data.rows import dialogue_pair, read
from alignlab.data.source import Source, Split
from alignlab.errors import DataError
from alignlab.records import Preference


def build(config: HhConfig) -> Source:
    """From a local folder of *.jsonl(.gz), or from the hub."""
    return Source(
        config.name,
        {
            "train": partial(_split, config, config.train, "train", config.limit),
            "test": partial(_split, config, config.test, "test", config.test_limit),
        },
    )


def pairs(lines: Iterable[tuple[str, dict[str, Any]]], differing_prompts: str) -> Split:
    """Records of dialogue pairs; those whose prompts differ are an error or are left out and counted."""
    records: list[Preference] = []
    differing = 0
    for row, fields in lines:
        record = dialogue_pair(row, str(fields.get("chosen", "")), str(fields.get("rejected", "")))
        if record is not None:
            records.append(record)
        elif differing_prompts == "error":
            raise DataError(
                f"{row}: the prompts of chosen and rejected differ; set data.differing_prompts=drop to leave it out."
            )
        else:
            differing += 1
    return Split(tuple(records), {"prompts of the pair differ": differing} if differing else {})


def _split(config: HhConfig, pattern: str, hub_split: str, limit: int | None) -> Split:
    lines = read(config.files(pattern), limit) if config.path else islice(_hub(config, hub_split, limit), limit)
    return pairs(lines, config.differing_prompts)


def _hub(config: HhConfig, split: str, limit: int | None) -> Iterable[tuple[str, dict[str, Any]]]:
    from alignlab.data.hub import rows

    for subset in config.subsets:
        yield from rows(config.hub, split, config.revision, limit, folder=subset)
