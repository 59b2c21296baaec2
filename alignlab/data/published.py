"""Published preference data, from local files or the hub: HH-RLHF, UltraFeedback (binarised), summaries from feedback."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from alignlab.data.config import FramedConfig, HhConfig, SummariesConfig
from alignlab.data.rows import dialogue_pair, read, text
from alignlab.data.source import Source, Split
from alignlab.errors import DataError, UnusablePairError
from alignlab.records import Record

PLACE = re.compile(r"\{(subreddit|title|post)\}")
"""What a frame may hold: the name of a text of `info`."""


def hh_rlhf(config: HhConfig) -> Source:
    """From a local folder of *.jsonl(.gz), or from the hub."""
    return Source(
        config.name,
        {
            "train": partial(_hh_split, config, config.train, "train", config.limit),
            "test": partial(_hh_split, config, config.test, "test", config.test_limit),
        },
    )


def hh_pairs(lines: Iterable[tuple[str, dict[str, Any]]], unusable_pairs: str) -> Split:
    """Records of dialogue hh_pairs; those that cannot be used are an error, or are left out and counted by reason."""
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


def _hh_split(config: HhConfig, pattern: str, hub_split: str, limit: int | None) -> Split:
    lines = read(config.files(pattern), limit) if config.path else islice(_hh_hub(config, hub_split, limit), limit)
    return hh_pairs(lines, config.unusable_pairs)


def _hh_hub(config: HhConfig, split: str, limit: int | None) -> Iterable[tuple[str, dict[str, Any]]]:
    for subset in config.subsets:
        yield from _hub_rows(config.hub, split, config.revision, limit, folder=subset)


def ultrafeedback(config: FramedConfig) -> Source:
    """From a local folder of *.jsonl(.gz) with the hub's columns, or from the hub, where there may be no test split."""
    readers = {"train": partial(_ultrafeedback_split, config, config.train, config.train_split, config.limit)}
    if config.path or config.test_split is not None:
        readers["test"] = partial(_ultrafeedback_split, config, config.test, config.test_split or "", config.test_limit)
    return Source(config.name, readers)


def ultrafeedback_pairs(lines: Iterable[tuple[str, dict[str, Any]]], frame: str) -> Split:
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


def _ultrafeedback_split(config: FramedConfig, pattern: str, hub_split: str, limit: int | None) -> Split:
    lines = read(config.files(pattern), limit) if config.path else _hub_rows(config.hub, hub_split, config.revision, limit)
    return ultrafeedback_pairs(lines, config.frame)


def _answer(fields: dict[str, Any], key: str, row: str) -> str:
    turns = fields.get(key)
    if isinstance(turns, str):
        return turns
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and "content" in turns[-1]:
        return str(turns[-1]["content"])
    raise DataError(f"{row}: {key!r} must be a text or a list of turns with 'content'.")


def summaries(config: SummariesConfig) -> Source:
    """From a local folder of *.jsonl(.gz) with the hub's columns, or from the hub."""
    return Source(
        config.name,
        {
            "train": partial(_summary_split, config, config.train, "train", config.limit),
            "test": partial(_summary_split, config, config.test, "validation", config.test_limit),
        },
    )


def summary_pairs(lines: Iterable[tuple[str, dict[str, Any]]], frame: str) -> Split:
    """Records of {info, summaries, choice}, summaries as they stand, a leading space included; rows without a post, and equal
    or empty summaries, are left out, counted."""
    records: list[Record] = []
    left_out = {"no post: a news article": 0, "a summary is empty": 0, "both summaries are the same": 0}
    for row, fields in lines:
        info, (chosen, rejected) = _info(fields, row), _two_summaries(fields, row)
        if not str(info.get("post") or "").strip():
            left_out["no post: a news article"] += 1
        elif not chosen.strip() or not rejected.strip():
            left_out["a summary is empty"] += 1
        elif chosen == rejected:
            left_out["both summaries are the same"] += 1
        else:
            records.append(Record.pair(row, _framed(frame, info, row), chosen, rejected))
    return Split(tuple(records), {reason: count for reason, count in left_out.items() if count})


def _summary_split(config: SummariesConfig, pattern: str, hub_split: str, limit: int | None) -> Split:
    if config.path:
        return summary_pairs(read(config.files(pattern), limit), config.frame)
    return summary_pairs(_hub_rows(config.hub, hub_split, config.revision, limit, folder=config.subset), config.frame)


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
    return texts[choice], texts[1 - choice]


def _framed(frame: str, info: dict[str, Any], row: str) -> str:
    """The frame with its places filled in one pass, so that braces in a post stay what they are."""
    return PLACE.sub(lambda place: text(info, place[1], row), frame)


def _hub_rows(
    name: str, split: str, revision: str | None, limit: int | None, folder: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name/split:number, fields). Raises DataError, cause kept, where the hub cannot be reached."""
    from datasets import load_dataset

    try:
        table = load_dataset(name, data_dir=folder, split=split, revision=revision)
    except Exception as error:  # the hub's client raises a dozen kinds; all of them mean the same to the user
        raise DataError(
            f"data set {name!r} could not be read from the hub ({type(error).__name__}: {error}); without a network, give"
            " data.path, a folder with the files."
        ) from error
    for number in range(len(table) if limit is None else min(limit, len(table))):
        yield f"{'/'.join(filter(None, (name, folder, split)))}:{number + 1}", dict(table[number])
