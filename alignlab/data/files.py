"""Local files as rows: JSON lines and arrays, csv, tsv, parquet, arrow, folders of save_to_disk, also compressed."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from alignlab.errors import DataError, UnusableRowError
from alignlab.registry import nearest

Row = tuple[str, "dict[str, Any] | UnusableRowError"]
"""(file:number, fields), or why the row cannot be used. `number`: the line of JSON lines, else the row, from 1."""

OPENERS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]
FORMS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", "")
"""Endings that are read, compression aside; of the same rows in two forms the earlier is read. "": a folder of save_to_disk."""
PLAIN = ".txt"
"""Ending of plain text, which has no rows."""
BACKUP = re.compile(r"^\.|~$|^#.*#$|\.(bak|orig|old|tmp|temp|swp|part|crdownload)$|\.(bak|orig|old|tmp)\.", re.IGNORECASE)
STRAY = re.compile("[\udc80-\udcff]")
"""A byte that is no UTF-8, as Python reads it with errors="surrogateescape"."""
ARRAY = re.compile(r"\s*\[\s*(\{|$)")
"""How a file begins that is one array of objects."""
MISSPELT = 0.75
"""How much the name of a column looks like the one that is missing, to be taken for it."""
SAVED = ("state.json", "dataset_info.json")
"""What tells a folder of `datasets.Dataset.save_to_disk`."""


@dataclass(frozen=True)
class Found:
    """The files that a pattern names: those to read, and those passed over, each with the reason."""

    files: tuple[Path, ...]
    passed_over: tuple[str, ...] = ()


def find(root: Path, pattern: str, forms: Sequence[str] = FORMS) -> Found:
    """The files of a folder that a pattern names; `root` alone where it is a file or a saved data set. `forms`: those that are
    read.

    Passed over are hidden files and backups, other endings, pipes and devices, and further forms of the same name.
    """
    if not root.is_dir() or is_saved(root):
        return Found((root,)) if root.is_file() or root.is_dir() else Found((), (f"{root.name} (not a regular file)",))
    chosen: dict[str, Path] = {}
    passed: list[str] = []
    for path in sorted(root.glob(pattern)):
        reason = _unread(path, forms)
        if reason:
            passed.append(f"{path.name} ({reason})")
            continue
        stem = str(path.with_name(_stem(path)))
        other = chosen.get(stem)
        if other is not None:
            kept, left = sorted((other, path), key=partial(_rank, forms))
            passed.append(f"{left.name} (another form of {kept.name})")
            path = kept
        chosen[stem] = path
    return Found(tuple(sorted(chosen.values())), tuple(passed))


def is_saved(folder: Path) -> bool:
    """Whether `datasets` has saved one split here."""
    return folder.is_dir() and all((folder / name).is_file() for name in SAVED)


def read(files: Iterable[Path], limit: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file:number, fields) of the first `limit` rows; raises DataError for one that does not parse."""
    for row, fields in rows(files, limit):
        if isinstance(fields, UnusableRowError):
            raise fields
        yield row, fields


def rows(files: Iterable[Path], limit: int | None = None) -> Iterator[Row]:
    """The first `limit` rows of the files one after another, lazily; blank lines are none. Raises DataError for a file that
    cannot be read at all."""
    files = tuple(files)
    return islice((row for file, name in zip(files, _called(files), strict=True) for row in _rows_of(file, name)), limit)


def plain(file: Path, separator: str | None) -> Iterator[tuple[str, str]]:
    """(file:line, text) of each text of a plain file: the whole file, or what stands between lines that are `separator`. Raises
    DataError for a file that cannot be read."""
    first, lines = 1, list[str]()
    try:
        with _opened(file) as opened:
            for number, line in enumerate(opened, start=1):
                if stray := _stray(line):
                    raise _no_text(f"{file.name}:{number}", stray)
                if separator is not None and line.strip() == separator:
                    yield f"{file.name}:{first}", "".join(lines)
                    first, lines = number + 1, []
                else:
                    lines.append(line)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeError) as error:
        raise _unreadable(file.name, error) from error
    yield f"{file.name}:{first}", "".join(lines)


def names(columns: Iterable[str], *wanted: str) -> str:
    """Columns listed in one line, long ones shortened; and the one that may be a column that is wanted, misspelt."""
    every = [str(column) for column in columns]
    listed = [" ".join(column.split())[:40] or "''" for column in every]
    near = ((column, nearest(column, wanted, 1, MISSPELT)) for column in every if column not in wanted)
    hint = next((f" (did you mean {close[0]!r} by {column!r}?)" for column, close in near if close), "")
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return f"{', '.join(listed[:20])}{more}{hint}" or "no column"


def or_misspelt(column: str, wanted: Iterable[str]) -> str:
    """A column that is not read, and the wanted one that may be meant by it."""
    close = nearest(column, wanted, 1, MISSPELT)
    return f"{column} (did you mean {close[0]!r}?)" if close else column


def _called(files: Sequence[Path]) -> list[str]:
    """How the rows of each file name it: by its name, and by its path below what they share where two have the same."""
    if len({file.name for file in files}) == len(files):
        return [file.name for file in files]
    shared = os.path.commonpath([file.absolute().parent for file in files])
    return [str(file.absolute().relative_to(shared)) for file in files]


def _rows_of(file: Path, name: str) -> Iterator[Row]:
    form = _form(file)
    try:
        if file.is_dir():
            yield from _saved(file, name)
        elif not file.is_file():
            raise DataError(f"{name}: is not a regular file; give one that is.")
        elif form in (".csv", ".tsv"):
            yield from _cells(file, form, name)
        elif form == ".parquet":
            yield from _parquet(file, name)
        elif form == ".arrow":
            yield from _saved(file, name)
        else:
            yield from _json(file, name)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: BaseException) -> DataError:
    return DataError(f"{name}: cannot be read as text ({_brief(error)}); look at the file, or write it again.")


def _unread(path: Path, forms: Sequence[str]) -> str | None:
    """Why a file is passed over."""
    if BACKUP.search(path.name):
        return "hidden or a backup"
    if path.is_dir():
        return None if is_saved(path) else "a folder"
    if not path.is_file():
        return "not a regular file"
    return None if form_of(path, forms) else "no form of data"


def form_of(path: Path, forms: Sequence[str] = FORMS) -> str | None:
    """The one of the forms that a path has; None for another."""
    form = "" if path.is_dir() else _form(path)
    return form if path.is_dir() or (form and form in forms) else None


def _form(path: Path) -> str:
    plain = Path(path.name[: -len(path.suffix)]) if path.suffix in OPENERS else path
    return plain.suffix.lower()


def _stem(path: Path) -> str:
    plain = path.name[: -len(path.suffix)] if path.suffix in OPENERS else path.name
    return plain[: -len(_form(path))] if _form(path) else plain


def _rank(forms: Sequence[str], path: Path) -> tuple[int, bool, str]:
    return forms.index("" if path.is_dir() else _form(path)), path.suffix in OPENERS, path.name


def _opened(file: Path, newline: str | None = None) -> IO[str]:
    """The file as text: UTF-8 with or without a byte order mark, a byte that is none as `_stray` finds it, or UTF-16 with
    one."""
    opener: Callable[..., IO[str]] = OPENERS.get(file.suffix, open)
    with opener(file, "rb") as raw:
        start = raw.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff"):  # type: ignore[comparison-overlap]
        return opener(file, "rt", encoding="utf-16", newline=newline)
    return opener(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _stray(text: str) -> str:
    """The first byte of a text that is no UTF-8, and its column; empty where there is none."""
    found = None if text.isascii() else STRAY.search(text)
    return f"the byte 0x{ord(found[0]) - 0xDC00:02x} at column {found.start() + 1}" if found else ""


def _no_text(row: str, stray: str) -> UnusableRowError:
    sentence = f"{row}: holds {stray}, which is no UTF-8; mend or remove the row, or write the file again as UTF-8."
    return UnusableRowError(sentence, "a byte that is no UTF-8")


def _json(file: Path, name: str) -> Iterator[Row]:
    """An object a line, or one JSON array of them, alone or as the only list of an object."""
    with _opened(file) as text:
        first = next((line for line in text if line.strip()), "")
    if first and (_form(file) == ".json" or ARRAY.match(first)):
        with _opened(file) as text:
            whole = text.read()
        value = _loaded(whole, name)
        if not isinstance(value, UnusableRowError):
            yield from _array(value, name, bool(_stray(whole)))
            return
        if not isinstance(_loaded(first, ""), dict):
            raise DataError(str(value))
    with _opened(file) as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield f"{name}:{number}", _parsed(line, f"{name}:{number}")


def _array(value: Any, name: str, strays: bool) -> Iterator[Row]:
    """The objects of an array. `strays`: bytes that are no UTF-8 are somewhere in it."""
    if isinstance(value, dict):
        lists = [held for held in value.values() if isinstance(held, list) and held and isinstance(held[0], dict)]
        value = lists[0] if len(value) == 1 and lists else [value]
    if not isinstance(value, list):
        raise DataError(f"{name}: must hold JSON objects but is {type(value).__name__}.")
    for number, fields in enumerate(value, start=1):
        row = f"{name}:{number}"
        stray = _stray(json.dumps(fields, ensure_ascii=False)) if strays else ""
        yield row, _no_text(row, stray) if stray else fields if isinstance(fields, dict) else _no_object(fields, row)


def _parsed(line: str, row: str) -> dict[str, Any] | UnusableRowError:
    if stray := _stray(line):
        return _no_text(row, stray)
    value = _loaded(line, row)
    return value if isinstance(value, (dict, UnusableRowError)) else _no_object(value, row)


def _no_object(value: Any, row: str) -> UnusableRowError:
    return UnusableRowError(f"{row}: a line must be a JSON object but is {type(value).__name__}.", "no JSON object")


def _loaded(text: str, row: str) -> Any:
    """The value of a JSON text, or why there is none."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        why = f"not valid JSON ({error.msg} at {where}); mend or remove the line."
        return UnusableRowError(f"{row}: {why}", "not valid JSON")
    except RecursionError:
        return UnusableRowError(f"{row}: is nested too deeply; mend or remove the line.", "nested too deeply")
    except KeyError as error:
        return UnusableRowError(f"{row}: the key {_brief(error)} stands twice; mend the line.", "a key stands twice")
    except ValueError as error:  # a whole number of more digits than Python converts
        return UnusableRowError(f"{row}: not valid JSON ({_brief(error)}); mend or remove the line.", "not valid JSON")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise KeyError(next(key for key in keys if keys.count(key) > 1))
    return made


def _cells(file: Path, form: str, name: str) -> Iterator[Row]:
    """Every cell as it is written: a class may be called NA, and 1 is not 1.0. A cell that holds messages as JSON is parsed."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _opened(file, newline="") as text:
        header = text.readline()
    delimiter = "\t" if form == ".tsv" else ";" if ";" in header and "," not in header else ","
    with _opened(file, newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            columns = next(reader, [])
            if stray := _stray(delimiter.join(columns)):
                raise DataError(f"{name}: its first line holds {stray}, which is no UTF-8; write the file again as UTF-8.")
            if len(set(columns)) < len(columns):
                raise DataError(f"{name}: a column stands twice among {names(columns)}; rename one.")
            number = 0
            for cells in reader:
                if not cells:
                    continue
                number += 1
                row = f"{name}:{number}"
                if stray := _stray(delimiter.join(cells)):
                    yield row, _no_text(row, f"{stray} of the row that ends in line {reader.line_num}")
                elif len(cells) == len(columns):
                    yield row, {column: _cell(cell) for column, cell in zip(columns, cells, strict=True)}
                else:
                    sentence = f"{row}: has {len(cells)} cells, but the table has {len(columns)} columns; mend the row."
                    yield row, UnusableRowError(sentence, "cells and columns differ in number")
        except csv.Error as error:
            raise DataError(f"{name} cannot be read as a table ({_brief(error)}); look at the file.") from error


def _cell(cell: str) -> Any:
    if cell.startswith(("[{", "{")) and cell.endswith(("}]", "}")):
        value = _loaded(cell, "")
        messages = value if isinstance(value, list) else [value]
        if all(
            isinstance(each, dict) and ({"role", "content"} <= each.keys() or {"from", "value"} <= each.keys())
            for each in messages
        ):
            return value
    return cell


def _parquet(file: Path, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            for fields in batch.to_pylist():
                number += 1
                yield f"{name}:{number}", fields
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read as a table ({_brief(error)}); look at the file.") from error


def _saved(path: Path, name: str) -> Iterator[Row]:
    """A folder of save_to_disk, or one of its arrow files; classes of a ClassLabel by their names."""
    from datasets import ClassLabel, Dataset, load_from_disk

    try:
        table = load_from_disk(str(path)) if path.is_dir() else Dataset.from_file(str(path))
    except Exception as error:  # the library raises what its parts raise
        raise DataError(f"{name} cannot be read as a table ({_brief(error)}); look at the files.") from error
    classes = {key: feature for key, feature in table.features.items() if isinstance(feature, ClassLabel)}
    for number, fields in enumerate(table, start=1):
        named = {key: feature.int2str(fields[key]) for key, feature in classes.items() if fields[key] is not None}
        yield f"{name}:{number}", {**fields, **named}


def _brief(error: BaseException) -> str:
    """The first line of what an error says."""
    said = str(error).strip()
    return said.splitlines()[0][:200] if said else type(error).__name__


def clean(value: str, key: str, row: str) -> str:
    """The text; raises UnusableRowError for one that no tokenizer takes: with NUL, or half of a surrogate pair."""
    if "\0" in value:
        raise UnusableRowError(f"{row}: {key!r} holds a NUL character; mend or remove the row.", "a NUL character in a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            sentence = f"{row}: {key!r} holds half of a surrogate pair; mend or remove the row."
            raise UnusableRowError(sentence, "half of a surrogate pair in a text") from None
    return value
