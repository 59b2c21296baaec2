"""Published preference data, from local files or the hub: HH-RLHF, UltraFeedback (binarised), summaries from feedback."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

from alignlab.commits import hub_silence
from alignlab.data.config import FramedConfig, HhConfig, HubConfig, SummariesConfig
from alignlab.data.files import Row, clean, read, rows
from alignlab.data.local import of_files
from alignlab.data.rows import DIFFER, EMPTY, NO_TURNS, SAME, Reader, split_of, text
from alignlab.data.source import LeftOut, Origin, Source, Split
from alignlab.errors import DataError
from alignlab.records import Record

PLACE = re.compile(r"\{(subreddit|title|post)\}")
"""What a frame may hold: the name of a text of `info`."""
NO_PAIRS = frozenset({EMPTY, SAME, DIFFER, *NO_TURNS})
"""Why a row of UltraFeedback is left out, and not an error."""


def _source(config: HubConfig, readers: Mapping[str, Callable[[], Split]], drops: bool = True) -> Source:
    """From local files, whose repeated rows are counted, or from the hub."""
    if config.path:
        return of_files(config, lambda name: readers[name](), drops=drops)
    return Source(config.name, readers, drops=drops)


def hh_rlhf(config: HhConfig) -> Source:
    """From a local folder of *.jsonl(.gz), or from the hub."""
    return _source(
        config,
        {
            "train": partial(_hh_split, config, config.train, "train", config.limit),
            "test": partial(_hh_split, config, config.test, "test", config.test_limit),
        },
        drops=config.unusable_pairs == "drop",
    )


def hh_pairs(lines: Iterable[Row], unusable_pairs: str) -> Split:
    """Records of dialogue pairs; those that cannot be used are an error, or are left out and counted by reason."""
    return split_of(lines, Reader(), None if unusable_pairs == "drop" else frozenset())


def _hh_split(config: HhConfig, pattern: str, hub_split: str, limit: int | None) -> Split:
    lines: Iterable[Row] = (
        rows(config.files(pattern), limit) if config.path else islice(_hh_hub(config, hub_split, limit), limit)
    )
    return hh_pairs(lines, config.unusable_pairs)


def _hh_hub(config: HhConfig, split: str, limit: int | None) -> Iterable[tuple[str, dict[str, Any]]]:
    for subset in config.subsets:
        yield from hub_rows(config.hub, split, config.commit, limit, folder=subset)


def ultrafeedback(config: FramedConfig) -> Source:
    """From a local folder of *.jsonl(.gz) with the hub's columns, or from the hub, where there may be no test split."""
    readers = {"train": partial(_ultrafeedback_split, config, config.train, config.train_split, config.limit)}
    if config.path or config.test_split is not None:
        readers["test"] = partial(_ultrafeedback_split, config, config.test, config.test_split or "", config.test_limit)
    return _source(config, readers)


def ultrafeedback_pairs(lines: Iterable[Row], frame: str) -> Split:
    """Records of {prompt, chosen, rejected}, answers as texts or conversations. Left out, and counted, are rows whose
    answers are equal or empty, and conversations that are no pair."""
    return split_of(lines, Reader(frame=frame), NO_PAIRS)


def _ultrafeedback_split(config: FramedConfig, pattern: str, hub_split: str, limit: int | None) -> Split:
    if config.path:
        return ultrafeedback_pairs(rows(config.files(pattern), limit), config.frame)
    return ultrafeedback_pairs(hub_rows(config.hub, hub_split, config.commit, limit), config.frame)


def summaries(config: SummariesConfig) -> Source:
    """From a local folder of *.jsonl(.gz) with the hub's columns, or from the hub."""
    return _source(
        config,
        {
            "train": partial(_summary_split, config, config.train, "train", config.limit),
            "test": partial(_summary_split, config, config.test, "validation", config.test_limit),
        },
    )


def summary_pairs(lines: Iterable[tuple[str, dict[str, Any]]], frame: str) -> Split:
    """Records of {info, summaries, choice}, summaries as they stand, a leading space included; rows without a post, and equal
    or empty summaries, are left out, counted."""
    records: list[Record] = []
    lost: list[LeftOut] = []
    columns: dict[str, None] = {}
    for row, fields in lines:
        columns.update(dict.fromkeys(fields))
        info, (chosen, rejected) = _info(fields, row), _two_summaries(fields, row)
        if not str(info.get("post") or "").strip():
            lost.append(LeftOut(row, "no post: a news article"))
        elif not chosen.strip() or not rejected.strip():
            lost.append(LeftOut(row, "a summary is empty"))
        elif chosen == rejected:
            lost.append(LeftOut(row, "both summaries are the same"))
        else:
            records.append(Record.pair(row, _framed(frame, info, row), chosen, rejected))
    used = tuple(column for column in columns if column in ("info", "summaries", "choice"))
    origin = Origin(used=used, unused=tuple(column for column in columns if column not in used))
    return Split(tuple(records), tuple(lost), origin=origin)


def _summary_split(config: SummariesConfig, pattern: str, hub_split: str, limit: int | None) -> Split:
    if config.path:
        return summary_pairs(read(config.files(pattern), limit), config.frame)
    return summary_pairs(hub_rows(config.hub, hub_split, config.commit, limit, folder=config.subset), config.frame)


def _info(fields: dict[str, Any], row: str) -> dict[str, Any]:
    info = fields.get("info")
    if not isinstance(info, dict):
        raise DataError(
            f"{row}: 'info' must be an object with 'subreddit', 'title' and 'post' but is {type(info).__name__}; mend or remove"
            " the row."
        )
    return info


def _two_summaries(fields: dict[str, Any], row: str) -> tuple[str, str]:
    """The better summary and the other one."""
    summaries, choice = fields.get("summaries"), fields.get("choice")
    found = summaries if isinstance(summaries, list) else []
    texts = [summary["text"] for summary in found if isinstance(summary, dict) and isinstance(summary.get("text"), str)]
    if len(found) != 2 or len(texts) != 2:
        raise DataError(f"{row}: 'summaries' must be a list of two objects with a 'text' each; mend or remove the row.")
    if type(choice) is not int or choice not in (0, 1):
        raise DataError(f"{row}: 'choice' must be 0 or 1, which summary is better, but is {choice!r}; mend or remove the row.")
    better, other = texts[choice], texts[1 - choice]
    return clean(better, "summaries", row), clean(other, "summaries", row)


def _framed(frame: str, info: dict[str, Any], row: str) -> str:
    """The frame with its places filled in one pass, so that braces in a post stay what they are."""
    return PLACE.sub(lambda place: text(info, place[1], row), frame)


def hub_rows(
    name: str, split: str, revision: str | None, limit: int | None, folder: str | None = None, subset: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name/split:number, fields) of a folder of the hub's layout, or of a subset that the data set names itself.

    Raises DataError, cause kept, where the hub cannot be reached.
    """
    from datasets import load_dataset

    part = {"data_dir": folder} if subset is None else {"name": subset}
    silence = hub_silence("dataset", name, revision)
    try:
        with _offline() if silence else nullcontext():
            table = load_dataset(name, **part, split=split, revision=revision)
    except Exception as error:  # the hub's client raises a dozen kinds; all of them mean the same to the user
        why = "; ".join(filter(None, (silence, f"{type(error).__name__}: {' '.join(str(error).split())}")))
        raise DataError(
            f"data set {name!r} could not be read from the hub ({why}); without a network, give data.path, a folder with the"
            " files."
        ) from error
    for number in range(len(table) if limit is None else min(limit, len(table))):
        yield f"{'/'.join(filter(None, (name, subset, folder, split)))}:{number + 1}", dict(table[number])


@contextmanager
def _offline() -> Iterator[None]:
    """Inside, the hub's client takes what is on this machine, and asks nobody."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
