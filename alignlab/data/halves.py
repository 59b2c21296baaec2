"""Splits made of a training split: halves, labels swapped on purpose, and a validation split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from random import Random
from typing import TYPE_CHECKING, Annotated

from alignlab.data.encode import Encode, ids_of
from alignlab.data.source import LeftOut, Source, Split
from alignlab.errors import ConfigError, DataError
from alignlab.records import Encoded, Example, Group, Record
from alignlab.registry import number, random_seed, text

if TYPE_CHECKING:
    from alignlab.data.config import DataConfig

HALVES = ("rm", "ppo")
"""The halves of a training split, the first and the second: as splits of their own, and as `part`."""
EARLIER = "before the halves were made"
"""Said of what was left out of the training split, so that each of its parts can count it."""

_OTHER = {"chosen": "rejected", "rejected": "chosen"}


@dataclass
class PrefixConfig:
    """Instruction prefixes that ask for a good and for a bad answer (RAHF, HIR, LoRRA); null where there are none. `separator`:
    between a prefix and the prompt."""

    better: Annotated[str | None, text(filled=True, needs=("worse", "give both, or null for both"), unlike="worse")]
    worse: Annotated[str | None, text(filled=True, needs=("better", "give both, or null for both"))]
    separator: str


@dataclass
class HalvesConfig:
    """The training split shuffled with `seed` and cut in halves. Records longer than max_tokens are left out first, whatever
    too_long says, and those with more than `max_prompt` tokens in front of a response, BOS and template included (null = any).
    `test`: so many records from the end are the test split, without a test_limit; null = the data's own."""

    seed: Annotated[int, random_seed()]
    test: Annotated[int | None, number(minimum=1, smoke=32)]
    max_prompt: Annotated[int | None, number(minimum=1)]


def with_halves(source: Source, config: DataConfig, encode: Encode) -> Source:
    """The source as `flipped`, `halves` and `part` of its config ask for; the source itself where they ask for nothing.

    Halves are the splits `rm` and `ppo`; `train` is both or the one that `part` names. Test splits are never flipped. Splits
    are read when they are asked for; reading raises DataError for a half without records.
    """
    if config.halves is None and not config.flipped:
        return source
    readers: dict[str, Callable[[], Split]] = {name: partial(source.split, name) for name in source.readers}
    if config.halves is None:
        readers["train"] = lambda: flipped(source.split("train"), config.flipped)
    else:
        made = cache(partial(_halved, source, config, config.halves, encode))
        names = ("train", *HALVES) if config.halves.test is None else ("train", *HALVES, "test")
        readers |= {name: lambda name=name: made()[name] for name in names}  # type: ignore[misc]
    return replace(source, readers=readers, _read={})  # what was read of a split is not what is read of its part


def flipped(split: Split, share: float) -> Split:
    """The split with the labels of about this share of its pairs swapped, scores and attributes staying with their texts.

    A row alone decides: the same pairs in any order, and those of a smaller share are among those of a larger one.
    """
    return replace(split, records=tuple(_swapped(record) if _is_flipped(record, share) else record for record in split.records))


def _is_flipped(record: Record, share: float) -> bool:
    is_pair = len(record.responses) == 2 and {response.label for response in record.responses} == set(_OTHER)
    return is_pair and Random(f"flipped/{record.row}").random() < share


def _swapped(record: Record) -> Record:
    return replace(record, responses=tuple(replace(each, label=_OTHER[str(each.label)]) for each in record.responses))


def _halved(source: Source, config: DataConfig, halves: HalvesConfig, encode: Encode) -> dict[str, Split]:
    """Order and sizes after RAHF (arXiv 2312.15997, released code): what fits, shuffled; test from the end, `rm` first."""
    whole = source.split("train")
    records, too_long = _fitting(source, config, halves.max_prompt, encode)
    lost = tuple(LeftOut(each.row, f"{each.reason}, {EARLIER}") for each in (*whole.lost, *too_long))
    Random(halves.seed).shuffle(records)
    trained = max(len(records) - (halves.test or 0), 0)
    train, test = records[:trained], records[trained:]
    if trained < len(HALVES):
        every = len(records) + len(lost)
        raise DataError(
            f"data={source.name}: of {every} training records {len(lost)} were left out and {len(test)} went to the"
            f" test split, which leaves {trained} for two halves; give more data, or change data.halves or data.max_tokens."
        )
    middle = (trained + 1) // 2
    notes = {f"{note}, {EARLIER}": count for note, count in whole.notes.items()}
    parts = (Split(tuple(part), lost, notes=notes) for part in (train[:middle], train[middle:], train))
    first, second, both = (flipped(part, config.flipped) for part in parts)
    named = dict(zip(HALVES, (first, second), strict=True))
    return {**named, "train": named[config.part] if config.part else both, "test": Split(tuple(test), lost)}


def _fitting(source: Source, config: DataConfig, max_prompt: int | None, encode: Encode) -> tuple[list[Record], list[LeftOut]]:
    """The training records within the limits, and those that are not, each once."""
    records = source.split("train").records
    groups = [Group(each.row, tuple(Example(each.prompt, response.text) for response in each.responses)) for each in records]
    kept: list[Record] = []
    lost: list[LeftOut] = []
    for record, members in zip(records, ids_of(groups, encode, source.drops), strict=True):
        reason = members if isinstance(members, str) else _reason(members, config.max_tokens, max_prompt)
        if reason is None:
            kept.append(record)
        else:
            lost.append(LeftOut(record.row, reason))
    return kept, lost


def _reason(members: Sequence[Encoded], max_tokens: int | None, max_prompt: int | None) -> str | None:
    if max_prompt is not None and any(member.start > max_prompt for member in members):
        return f"prompt longer than {max_prompt} tokens"
    if max_tokens is not None and any(len(member.ids) > max_tokens for member in members):
        return f"longer than {max_tokens} tokens"
    return None


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
        held |= held_out_rows([record for record in whole.records if record.task == task], share, Random(f"{seed}/{task}"))
    train = tuple(record for record in whole.records if record.row not in held)
    validation = tuple(record for record in whole.records if record.row in held)
    if not train or not validation:
        raise DataError(
            f"data={source.name}: holding out {share:g} of {len(whole.records)} training records leaves {len(train)} to train"
            f" on and {len(validation)} to validate on; change trainer.validation.share or give more data."
        )
    return replace(whole, records=train, rows=None), Split(validation)


def held_out_rows(records: Sequence[Record], share: float, generator: Random) -> set[str]:
    """The rows of so many prompts, drawn by the generator, that together have the share."""
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
