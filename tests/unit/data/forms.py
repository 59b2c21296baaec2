"""The same pairs in every form that a file of them may have, and a config that reads them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alignlab.data.config import JsonlConfig
from tests.unit.conftest import DATA

Rows = Sequence[dict[str, Any]]


def config(path: Path | None, **changes: Any) -> JsonlConfig:
    values: dict[str, Any] = {
        **DATA,
        "name": "jsonl",
        "path": path and str(path),
        "train": "train*",
        "test": "test*",
        "columns": {},
        "answers": "last",
        "repeated_prompt": "keep",
        "test_share": 0.25,
        "split_seed": 0,
        "unusable_pairs": "error",
    }
    return JsonlConfig(**{**values, **changes})


def lines(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows: Rows, delimiter: str) -> str:
    written = io.StringIO()
    writer = csv.DictWriter(written, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


def _parquet(path: Path, rows: Rows) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def _saved(path: Path, rows: Rows) -> None:
    from datasets import Dataset

    Dataset.from_list(list(rows)).save_to_disk(str(path))


WRITERS: dict[str, Callable[[Path, Rows], object]] = {
    ".jsonl": lambda path, rows: path.write_text(lines(rows), encoding="utf-8"),
    ".ndjson": lambda path, rows: path.write_text(lines(rows).replace("\n", "\r\n\n"), encoding="utf-8"),
    "-bom.jsonl": lambda path, rows: path.write_text(lines(rows), encoding="utf-8-sig"),
    "-utf16.jsonl": lambda path, rows: path.write_text(lines(rows), encoding="utf-16"),
    ".jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows).encode())),
    ".jsonl.bz2": lambda path, rows: path.write_bytes(bz2.compress(lines(rows).encode())),
    ".jsonl.xz": lambda path, rows: path.write_bytes(lzma.compress(lines(rows).encode())),
    ".json": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8"),
    "-indented.json": lambda path, rows: path.write_text(json.dumps(rows, indent=2), encoding="utf-8"),
    "-in-an-object.json": lambda path, rows: path.write_text(json.dumps({"data": rows}), encoding="utf-8"),
    "-of-lines.json": lambda path, rows: path.write_text(lines(rows), encoding="utf-8"),
    "-array.jsonl": lambda path, rows: path.write_text(json.dumps(rows, indent=1), encoding="utf-8"),
    ".csv": lambda path, rows: path.write_text(table(rows, ","), encoding="utf-8"),
    "-semicolons.csv": lambda path, rows: path.write_text(table(rows, ";"), encoding="utf-8-sig"),
    ".tsv": lambda path, rows: path.write_text(table(rows, "\t"), encoding="utf-8"),
    ".parquet": _parquet,
    "-saved": _saved,
}


def written(folder: Path, rows: Rows, form: str = ".jsonl") -> Path:
    """The folder with these rows as both splits."""
    for split in ("train", "test"):
        WRITERS[form](folder / f"{split}{form}", rows)
    return folder
