"""Texts and what they are told to be, from files: csv, tsv, jsonl or parquet, one or two columns of text and one of labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from alignlab.data.config import TextClassificationConfig
from alignlab.data.rows import read
from alignlab.data.source import Source, Split
from alignlab.errors import ConfigError, DataError
from alignlab.records import LabelSet, Record, Response
from alignlab.registry import nearest

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def build(config: TextClassificationConfig) -> Source:
    """The response of a record is the name of its class, or its number as a text."""
    splits = {name: partial(_split, config, name) for name in ("train", "test")}
    return Source(config.name, splits, labels=partial(_labels, config))


def _split(config: TextClassificationConfig, split: str) -> Split:
    rows = list(_rows(config, config.train if split == "train" else config.test))
    if config.test_share is not None:
        Random(config.split_seed).shuffle(rows)
        held_out = math.ceil(config.test_share * len(rows))
        rows = rows[:held_out] if split == "test" else rows[held_out:]
    limit = config.limit if split == "train" else config.test_limit
    left_out: Counter[str] = Counter()
    records = []
    for row, fields in rows[:limit]:
        record = _record(config, row, fields)
        if record is None:
            left_out["a column is empty"] += 1
        else:
            records.append(record)
    if not records:
        raise DataError(f"data={config.name}: the {split} split has no row with a text and a label; look at data.{split}.")
    return Split(tuple(records), dict(left_out))


def _labels(config: TextClassificationConfig) -> LabelSet:
    """The classes that are given, or those of the training rows, sorted. Raises DataError where there are fewer than two."""
    if config.task == "number":
        return LabelSet(())
    found = {record.responses[0].text for record in _split(config, "train").records}
    names = tuple(config.labels or sorted(found))
    if len(names) < 2:
        raise DataError(f"the training rows have one class only, {', '.join(names)}; a classifier tells at least two apart.")
    return LabelSet(names)


def _record(config: TextClassificationConfig, row: str, fields: dict[str, Any]) -> Record | None:
    """None where a column is empty."""
    wanted = [config.text, config.label, *([config.second] if config.second else [])]
    for column in wanted:
        if column not in fields:
            close = nearest(column, fields)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ConfigError(f"{row}: has no column {column!r} (it has {', '.join(fields)}){hint} Set data.text, data.label.")
    texts = [_text(fields[column], column, row) for column in wanted]
    if any(text is None or not text.strip() for text in texts):
        return None
    text, label, *second = (str(text) for text in texts)
    if config.task == "number":
        _refuse_other_than_a_number(label, row)
    return Record(row, text, (Response(label),), second=second[0] if second else None)


def _text(value: Any, column: str, row: str) -> str | None:
    """A cell as a text: whole numbers and truth values as they are written, no cell of a table being NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (str, int, float)):
        return str(value)
    raise DataError(f"{row}: column {column!r} must be a text, a number, true or false, but is {type(value).__name__}.")


def _refuse_other_than_a_number(label: str, row: str) -> None:
    try:
        finite = math.isfinite(float(label))
    except ValueError:
        finite = False
    if not finite:
        raise DataError(f"{row}: label {label!r} is no finite number; set data.task=classes, or mend the row.")


def _rows(config: TextClassificationConfig, pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in config.files(pattern):
        kind = _ending(file)
        if kind == ".jsonl":
            yield from read([file], None)
        elif kind in SEPARATORS or kind == ".parquet":
            yield from _table(file, kind)
        else:
            raise DataError(f"{file.name} is none of csv, tsv, jsonl and parquet; convert it, or set data.train and data.test.")


def _table(file: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pandas

    try:
        if kind == ".parquet":
            table = pandas.read_parquet(file)
        else:
            # Every cell as it is written: a class may be called NA, and 1 is not 1.0.
            table = pandas.read_csv(file, sep=SEPARATORS[kind], dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file.name} cannot be read as a table ({str(error).splitlines()[0]}); look at the file.") from error
    for number, fields in enumerate(table.to_dict("records"), start=1):
        yield f"{file.name}:{number}", {str(column): value for column, value in fields.items()}


def _ending(file: Path) -> str:
    """The kind of a file by its name, compression aside."""
    return Path(file.name.removesuffix(".gz")).suffix
