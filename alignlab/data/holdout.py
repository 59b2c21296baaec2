"""A validation split for data that has none: a share of the training records, by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from random import Random

from alignlab.data.source import Source, Split
from alignlab.errors import ConfigError, DataError
from alignlab.records import Record


def with_validation(source: Source, split: str, share: float | None, seed: int) -> Source:
    """The source with this split: its own, or about `share` of the training records, which `train` then lacks.

    Records of one prompt stay together; `seed` decides which prompts are held out, of each task as many. Raises ConfigError
    where the source has no such split and no share is given; reading raises DataError where a side would be empty.
    """
    if split in source.readers:
        return source
    if share is None:
        raise ConfigError(
            f"data={source.name} has no split {split!r}; give trainer.validation.share, the part of its training records to"
            f" hold out, or name another split of it: {', '.join(source.readers)}."
        )

    @cache
    def parts() -> tuple[Split, Split]:
        return _cut(source, share, seed)

    return replace(source, readers={**source.readers, "train": lambda: parts()[0], split: lambda: parts()[1]}, _read={})


def _cut(source: Source, share: float, seed: int) -> tuple[Split, Split]:
    whole = source.split("train")
    held: set[str] = set()
    for task in dict.fromkeys(record.task for record in whole.records):
        held |= _held([record for record in whole.records if record.task == task], share, Random(f"{seed}/{task}"))
    train = tuple(record for record in whole.records if record.row not in held)
    validation = tuple(record for record in whole.records if record.row in held)
    if not train or not validation:
        raise DataError(
            f"data={source.name}: holding out {share:g} of {len(whole.records)} training records leaves {len(train)} to train"
            f" on and {len(validation)} to validate on; change trainer.validation.share or give more data."
        )
    return replace(whole, records=train), Split(validation)


def _held(records: Sequence[Record], share: float, generator: Random) -> set[str]:
    """The rows of so many prompts that together have the share."""
    by_prompt: dict[str, list[str]] = {}
    for record in records:
        by_prompt.setdefault(record.prompt, []).append(record.row)
    prompts = list(by_prompt)
    generator.shuffle(prompts)
    held: set[str] = set()
    for prompt in prompts:
        if len(held) >= share * len(records):
            break
        held.update(by_prompt[prompt])
    return held
