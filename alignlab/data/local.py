"""A user's own files: `data=jsonl`, answers and pairs of any form, `data=text_classification`, texts with their labels, and
`data=texts`, texts to pretrain on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any

from alignlab.data.config import JsonlConfig, LocalConfig, TextClassificationConfig, TextsConfig
from alignlab.data.files import PLAIN, clean, find, form_of, names, plain, read, rows
from alignlab.data.halves import held_out_rows
from alignlab.data.rows import Reader, split_of
from alignlab.data.source import LeftOut, Origin, Source, Split
from alignlab.errors import ConfigError, DataError
from alignlab.files import content_keys
from alignlab.records import LabelSet, Record, Response
from alignlab.registry import nearest

COLUMN = re.compile(r"\{(\w+)\}")
"""The place of a column in a frame."""


def jsonl(config: JsonlConfig) -> Source:
    """From data.path: a folder with the files of both splits, or one file, of which a seeded share of prompts is held out."""
    return of_files(config, partial(_rows_as_records, config), drops=config.unusable_pairs == "drop")


def offers(config: JsonlConfig) -> frozenset[str]:
    """`chosen`, and what the rows of the training split have: `pairs`, `labels`, `scores`, `attributes`."""
    if config.path is None:
        raise ConfigError("data=jsonl needs data.path: a folder that holds the files named by data.train and data.test.")
    held = {"chosen"}
    for record in _read(config, "train")[0].records:
        if len(record.responses) == 2:
            held.add("pairs")
        else:
            (response,) = record.responses
            found = {"labels": response.label is not None, "scores": response.score is not None}
            held |= {what for what, there in {**found, "attributes": bool(response.attributes)}.items() if there}
    return frozenset(held)


def of_files(
    config: LocalConfig, reader: Callable[[str], Split], patterns: Mapping[str, str] | None = None, **more: Any
) -> Source:
    """A source of local files. `reader`: split -> its records. `patterns`: of the files of each split; None = those fields of
    the config. Counted in the notes: rows that stand there twice, and rows held out that stand in the training split."""
    patterns = patterns or {field: getattr(config, field) for field in config.named_by}

    @lru_cache
    def noted(name: str) -> Split:
        split = reader(name)
        seen = {_content(record) for record in split.records}
        notes = {**split.notes, "that repeat another row (kept)": len(split.records) - len(seen)}
        if name != "train" and "train" in patterns:
            trained = {_content(record) for record in noted("train").records}
            notes["that stand in the training split too"] = sum(_content(record) in trained for record in split.records)
        found, read_files = find(Path(str(config.path)), patterns[name], config.forms), config.files(patterns[name])
        passed = (*found.passed_over, *(f"{file.name} (not used)" for file in found.files if file not in read_files))
        files = {"files": tuple(file.name for file in read_files), "passed_over": passed}
        origin = replace(split.origin or Origin(), **files)
        return replace(split, notes={note: count for note, count in notes.items() if count}, origin=origin)

    return Source(config.name, {name: partial(noted, name) for name in patterns}, **more)


def text_classification(config: TextClassificationConfig) -> Source:
    """The response of a record is the name of its class, the class's number, or its number as a text."""
    return of_files(config, partial(_told, config), labels=partial(_labels, config))


def texts(config: TextsConfig) -> Source:
    """One split, `corpus`: pieces of the texts, of which the first word is the prompt, since a causal model predicts nothing
    there, and the others are the response."""
    return of_files(config, lambda _: _pieces(config))


def written(frame: str, fields: Mapping[str, str], row: str) -> str:
    """A frame with the texts of a row in the places of {column}. Raises DataError for a column that the row does not have."""
    for column in COLUMN.findall(frame):
        if column not in fields:
            raise DataError(
                f"{row}: has no column {column!r}, which the frame asks for (it has {names(fields, column)}); mend the frame."
            )
    return COLUMN.sub(lambda found: fields[found[1]], frame)


def _content(record: Record) -> tuple[Any, ...]:
    """The fields by which two records count as the same."""
    return record.prompt, record.second, tuple((each.text, each.label, each.score) for each in record.responses)


def _read(config: JsonlConfig, name: str) -> tuple[Split, bool]:
    """The rows of a split's files, read once in this process; and whether the other split has the same files."""
    files, others = config.files(config.train), config.files(config.test)
    shared = files == others
    if name == "test":
        files = others
    limit = config.limit if name == "train" else config.test_limit
    columns = tuple(config.columns.items())
    key = (tuple(files), tuple(content_keys(files)), columns, config.answers, config.repeated_prompt, config.unusable_pairs)
    return _whole(*key, None if shared else limit), shared


def _rows_as_records(config: JsonlConfig, name: str) -> Split:
    """A split; of files that both name, its share: rows of one prompt stay together."""
    whole, shared = _read(config, name)
    if not shared:
        return whole
    rows_of: dict[str, list[Record]] = {}
    for record in whole.records:
        rows_of.setdefault(record.row.partition("/")[0], []).append(record)
    firsts = [replace(records[0], row=row) for row, records in rows_of.items()]
    held = held_out_rows(firsts, config.test_share, Random(f"files/{config.split_seed}"))
    train, test = (
        [record for row, records in rows_of.items() if (row in held) == out for record in records] for out in (False, True)
    )
    if not train or not test:
        raise DataError(
            f"data.path={config.path}: holding out {config.test_share:g} of {len(whole.records)} records leaves {len(train)} to"
            f" train on and {len(test)} to test; change data.test_share, or name files for both in data.train and data.test."
        )
    if name == "test":  # what was left out of the file is told of the training split
        return Split(tuple(test[: config.test_limit]), rows=_rows_in(test[: config.test_limit]), origin=whole.origin)
    kept = train[: config.limit]
    notes = {f"{note} (in the whole file)": count for note, count in whole.notes.items()}
    return Split(tuple(kept), whole.lost, rows=_rows_in(kept) + len(whole.lost), notes=notes, origin=whole.origin)


def _rows_in(records: Sequence[Record]) -> int:
    """How many rows these records are of."""
    return len({record.row.partition("/")[0] for record in records})


@lru_cache(maxsize=4)
def _whole(
    files: tuple[Path, ...],
    _keys: tuple[str, ...],
    columns: tuple[tuple[str, str], ...],
    answers: str,
    repeated_prompt: str,
    unusable: str,
    limit: int | None,
) -> Split:
    reader = Reader(dict(columns), answers, repeated_prompt)
    split = split_of(rows(files, limit), reader, None if unusable == "drop" else frozenset())
    where = names(file.name for file in files)
    if not split.rows:
        raise ConfigError(f"{where}: the file is empty; give it at least one row.")
    if not split.records:
        reasons = "; ".join(f"{count} {reason}" for reason, count in split.left_out.items())
        seen = names((*split.origin.used, *split.origin.unused) if split.origin else ())
        raise DataError(f"{where}: none of {split.rows} rows can be used ({reasons}); the columns are {seen}.")
    return split


def _told(config: TextClassificationConfig, split: str) -> Split:
    """The records of a split, with the answers and in the frame that are asked for."""
    read_split = _texts(config, split)
    records = list(read_split.records)
    if config.frame is not None:
        for place, record in enumerate(records):
            texts = {"text": record.prompt} | ({} if record.second is None else {"second": record.second})
            records[place] = replace(record, prompt=written(config.frame, texts, record.row), second=None)
    if config.answers == "numbers" and config.task == "classes":
        classes = _classes(config)
        for place, record in enumerate(records):
            records[place] = replace(record, responses=(Response(str(classes.index(record.responses[0].text))),))
    return replace(read_split, records=tuple(records))


def _texts(config: TextClassificationConfig, split: str) -> Split:
    lines = list(_lines(config, config.train if split == "train" else config.test))
    if config.test_share is not None:
        Random(config.split_seed).shuffle(lines)
        held_out = math.ceil(config.test_share * len(lines))
        lines = lines[:held_out] if split == "test" else lines[held_out:]
    limit = config.limit if split == "train" else config.test_limit
    lost: list[LeftOut] = []
    records = []
    columns: dict[str, None] = {}
    for row, fields in lines[:limit]:
        columns.update(dict.fromkeys(fields))
        record = _labelled_text(config, row, fields)
        if record is None:
            lost.append(LeftOut(row, "a column is empty"))
        else:
            records.append(record)
    if not records:
        raise DataError(f"data={config.name}: the {split} split has no row with a text and a label; look at data.{split}.")
    if config.task == "classes" and (config.labels or split != "train"):
        _refuse_other_labels(records, _classes(config))
    used = tuple(column for column in columns if column in _wanted(config))
    origin = Origin(used=used, unused=tuple(column for column in columns if column not in used))
    return Split(tuple(records), tuple(lost), origin=origin)


def _labels(config: TextClassificationConfig) -> LabelSet:
    """The classes that are given, or those of the training rows, sorted; their numbers where answers are numbers. Raises
    DataError as `_classes`."""
    if config.task == "number":
        return LabelSet(())
    named = _classes(config)
    return LabelSet(tuple(map(str, range(len(named)))) if config.answers == "numbers" else named)


def _classes(config: TextClassificationConfig) -> tuple[str, ...]:
    """Raises DataError where the training rows have fewer than two, and where they are numbers with decimals."""
    if config.labels:
        return tuple(config.labels)
    named = tuple(sorted({record.responses[0].text for record in _texts(config, "train").records}))
    decimals = [name for name in named if re.fullmatch(r"[+-]?\d*\.\d+", name)]
    if decimals and all(re.fullmatch(r"[+-]?\d*\.?\d+", name) for name in named):
        raise DataError(
            f"the labels are numbers, such as {decimals[0]}, and data.task=classes would make {len(named)} classes of them; set"
            " data.task=number, or name the classes in data.labels."
        )
    if len(named) < 2:
        raise DataError(f"the training rows have one class only, {', '.join(named)}; a classifier needs at least two.")
    return named


def _refuse_other_labels(records: Sequence[Record], known: Sequence[str]) -> None:
    """Raises DataError for the first row with a label that is none of the classes."""
    for record in records:
        if record.responses[0].text not in known:
            raise DataError(
                f"{record.row}: label {record.responses[0].text[:40]!r} is none of the classes {names(known)}; mend the row, or"
                " name the classes in data.labels."
            )


def _wanted(config: TextClassificationConfig) -> Sequence[str]:
    return [config.text, config.label, *([config.second] if config.second else [])]


def _labelled_text(config: TextClassificationConfig, row: str, fields: Mapping[str, Any]) -> Record | None:
    """None where a column is empty."""
    for column in _wanted(config):
        if column not in fields:
            close = nearest(column, fields)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ConfigError(f"{row}: has no column {column!r} (it has {names(fields)}){hint} Set data.text, data.label.")
    texts = [_cell_text(fields[column], column, row) for column in _wanted(config)]
    if any(text is None or not text.strip() for text in texts):
        return None
    text, label, *second = (str(text) for text in texts)
    if config.task == "number":
        _refuse_other_than_a_number(label, row)
    return Record(row, text, (Response(label),), second=second[0] if second else None)


def _cell_text(value: Any, column: str, row: str) -> str | None:
    """A cell as a text: whole numbers and truth values as they are written, no cell of a table being NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (str, int, float)):
        return clean(str(value), column, row)
    raise DataError(f"{row}: column {column!r} must be a text, a number, true or false, but is {type(value).__name__}.")


def _refuse_other_than_a_number(label: str, row: str) -> None:
    try:
        finite = math.isfinite(float(label))
    except ValueError:
        finite = False
    if not finite:
        raise DataError(f"{row}: label {label[:40]!r} is no finite number; set data.task=classes, or mend the row.")


def _pieces(config: TextsConfig) -> Split:
    """Of each text so many words a piece, with the white space between them."""
    lost: list[LeftOut] = []
    records: list[Record] = []
    for row, text in _whole_texts(config):
        words = [found[0] for found in re.finditer(r"\S+\s*", text)]
        for place in range(0, len(words), config.words):
            if len(records) == config.limit:
                return Split(tuple(records), tuple(lost))
            first, *others = words[place : place + config.words]
            if not others:
                lost.append(LeftOut(row, "a text or its rest is one word"))
                continue
            bare = first.rstrip()
            response = Response(first[len(bare) :] + "".join(others).rstrip())
            records.append(Record(f"{row}/{place // config.words}", bare, (response,)))
        if not words:
            lost.append(LeftOut(row, "a text is empty"))
    if not records:
        raise DataError(f"data.path={config.path}: no text has two words; look at the files.")
    return Split(tuple(records), tuple(lost))


def _whole_texts(config: TextsConfig) -> Iterator[tuple[str, str]]:
    """(file:line, text). Raises ConfigError for rows without the column, DataError for a text that no tokenizer takes."""
    for file in config.files(config.corpus):
        if form_of(file, (PLAIN,)):
            yield from ((row, clean(text, "text", row)) for row, text in plain(file, config.separator))
            continue
        for row, fields in read([file]):
            if config.text not in fields:
                raise ConfigError(f"{row}: has no column {config.text!r} (it has {names(fields, config.text)}); set data.text.")
            yield row, _cell_text(fields[config.text], config.text, row) or ""


def _lines(config: TextClassificationConfig, pattern: str) -> Sequence[tuple[str, dict[str, Any]]]:
    files = config.files(pattern)
    for file in files:
        if form_of(file) is None:
            raise DataError(f"{file.name} is none of csv, tsv, jsonl and parquet; convert it, or set data.train and data.test.")
    return list(read(files))
