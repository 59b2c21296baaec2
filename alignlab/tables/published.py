"""What the papers print, beside what the runs have obtained."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignlab.errors import DataError
from alignlab.tables.lines import Line, Table

FILE = "published.csv"
TOY = "toy"
Pairs = Mapping[tuple[str, str], str]
"""From the key of a line to the published row beside it."""
NOT_KNOWN, NOT_RUN = "not known", "not run"


@dataclass(frozen=True)
class Published:
    """The numbers of a paper's table as printed, "" where none is known. `same_scale`: whether the sweep is at the paper's
    scale, so that a column of the same name is the same metric."""

    path: Path
    same_scale: bool
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]

    def column(self, metric: str) -> str | None:
        """The column that stands beside our suite/metric: only one of the same name, at the paper's scale."""
        if not self.same_scale:
            return None
        return next((name for name in self.columns if name in (metric, metric.partition("/")[2])), None)

    def printed(self, row: str | None, metric: str) -> str:
        """The printed number in a row for our suite/metric, "" where none is known."""
        column = self.column(metric)
        return self.rows[row][column] if row is not None and column is not None else ""


def published_for(name: str, experiments: Path) -> Published | None:
    """The published table of a sweep, None where there is no file. `X/toy/T` has the numbers of `X/T`, and what a command line
    has added to a table's name (`X/T+key=value`) does not change its paper. Raises DataError for a file without rows."""
    path = path_for(name, experiments)
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
    columns = tuple(name for name in reader.fieldnames or () if name != "row")
    if not lines or "row" not in lines[0]:
        raise DataError(f"{path} has no column named row, or no line; see how the other {FILE} begin.")
    rows = {line["row"]: {column: line[column] or "" for column in columns} for line in lines}
    return Published(path, not _is_toy(name), columns, rows)


def beyond(mean: float, printed: str) -> float | None:
    """Ours minus the printed number, None where what is printed is no number."""
    try:
        return mean - float(printed)
    except ValueError:
        return None


def path_for(name: str, experiments: Path) -> Path:
    """Where the published numbers of a sweep are, if there are any."""
    parts = [part for part in name.partition("+")[0].split("/") if part != TOY]
    return experiments.joinpath(*parts) / FILE


def beside(table: Table, published: Published | None) -> Pairs:
    """From the key of a line, asked for or not, to the published row that stands beside it. At the toy scale, none does.

    A line is looked up as `row`, `row-MODEL` (both at strength 1 only, or the first class) and `row-STRENGTH-MODEL`; models are
    compared by their letters and digits (llama32_3b is llama-3.2-3b). A row that several lines would share goes to none.
    """
    if published is None or not published.same_scale:
        return {}
    found = {line.key: row for line in table.every if (row := _row_of(line, published)) is not None}
    shared = Counter(found.values())
    return {key: row for key, row in found.items() if shared[row] == 1}


def _row_of(line: Line, published: Published) -> str | None:
    names = _names(line)
    return next((row for name, strength in names for row in published.rows if _is_called(row, name, strength, line)), None)


def _names(line: Line) -> Iterator[tuple[str, float | None]]:
    """How its published row may begin, and at which strength; the more exact first."""
    name = line.row or "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in line.settings.items() if key != "model")
    if not name or not line.first:
        return
    if line.strength is not None:
        yield name, line.strength
    if line.strength in (None, 1.0):
        yield name, None


def _is_called(row: str, name: str, strength: float | None, line: Line) -> bool:
    if not row.startswith(name):
        return False
    rest = row.removeprefix(name)
    if strength is not None:
        number = re.match(r"-(\d+(?:\.\d+)?)(?=-|$)", rest)
        if number is None or float(number[1]) != strength:
            return False
        rest = rest[number.end() :]
    models: Sequence[str] = ["", *(_plain(seen.model) for seen in line.jobs if seen.model)]
    return (not rest or rest.startswith("-")) and _plain(rest) in models


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_toy(name: str) -> bool:
    return TOY in name.partition("+")[0].split("/")[1:]
