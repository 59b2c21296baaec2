"""The results of a run: rows, report.json, and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignlab.errors import MeasureError
from alignlab.evaluation import METRICS
from alignlab.tracking.ledger import Ledger

BATCHES = "evaluation.jsonl"
"""In a run's folder while it is evaluated: the batches that were measured."""
BORDER = 3
"""Letters of a column of a table besides its own: a blank on each side, and a line."""
ROWS = "evaluation.json"
"""File of a run with the rows of its evaluation, so far or whole, and the value of each item of a metric that is a mean over
items, for comparisons item by item."""


@dataclass(frozen=True)
class Row:
    """One number of a report. `low`, `high`: of the 95 % interval, None where it cannot be estimated. `items`, `scale`: as in
    `Measurement`; they stand in ROWS, not in the report. `note`: what was left out, if anything was;
    `details`: how it was measured, where that is said; the screen leaves it to the report."""

    strength: float
    control: str
    suite: str
    metric: str
    value: float
    n: int
    low: float | None
    high: float | None
    items: Mapping[str, float] = field(default_factory=dict, repr=False)
    scale: str = ""
    note: str = ""
    details: str = ""

    @property
    def plain(self) -> dict[str, Any]:
        """The row without its items; its note and details only where it has them."""
        left_out = ("items", "scale", *(key for key in ("note", "details") if not getattr(self, key)))
        return {key: value for key, value in vars(self).items() if key not in left_out}

    @property
    def unmeasured(self) -> dict[str, Any]:
        """What a row without a number says."""
        return {key: value for key, value in self.plain.items() if key not in ("value", "low", "high")}


@dataclass(frozen=True)
class Report:
    """Where the report is, its headline number (None without evaluation), and its rows; `unmeasured`: those with n = 0."""

    path: Path
    value: float | None
    rows: Sequence[Row]
    unmeasured: Sequence[Row] = ()


def write_report(ledger: Ledger, names: Mapping[str, Any], rows: Sequence[Row]) -> Report:
    """Writes report.json: who the run is, its headline, and a list of rows. Rows with n = 0 are no numbers, and stand apart, in
    `unmeasured`, where there are any."""
    unmeasured = [row for row in rows if not row.n]
    first = headline(rows) if rows else None
    rows = [row for row in rows if row.n]
    shown = {"metric": f"{first.suite}/{first.metric}", "value": first.value} if first else None
    results = {"headline": shown, "results": [row.plain for row in rows]}
    if unmeasured:
        results["unmeasured"] = [row.unmeasured for row in unmeasured]
    path = ledger.write("report.json", {**names, **results})
    return Report(path, first.value if first else None, rows, unmeasured)


def refuse_unmeasured(report: Path) -> None:
    """Raises MeasureError for a report of a finished run that has no number where one was asked for."""
    missing = json.loads(report.read_text(encoding="utf-8")).get("unmeasured", [])
    if missing:
        first = missing[0]
        raise MeasureError(
            f"{first['suite']}/{first['metric']} could not be measured at {first['control']} {first['strength']:g}"
            f" ({first.get('note') or 'there was nothing to measure it on'})"
            f"{f', and {len(missing) - 1} more numbers' if len(missing) > 1 else ''}; the run is finished, and {report} has the"
            " others: look at what the model writes, or set evaluation.suites to what it can be measured by."
        )


def show(report: Report, console: Console) -> None:
    """Metrics down, strengths or classes across, each with its interval."""
    if not report.rows:
        return
    named = titles(report.rows)
    columns = list(dict.fromkeys(named))
    cells = {(row.suite, row.metric, title): row for row, title in zip(report.rows, named, strict=True)}
    lines: list[list[str]] = []
    for suite, metric in dict.fromkeys((row.suite, row.metric) for row in report.rows):
        found = [cells.get((suite, metric, title)) for title in columns]
        counts = sorted({row.n for row in found if row})
        n = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
        lines.append([f"{suite}/{metric}", n, *(_cell(row) for row in found)])
    for number, part in enumerate(_fitting([("metric", "n", *columns), *lines], console.width)):
        table = Table(title="" if number else "results (value with 95 % interval)", title_justify="left")
        for place in part:
            table.add_column(("metric", "n", *columns)[place], justify="right" if place else "left", no_wrap=True)
        for line in lines:
            table.add_row(*(line[place] for place in part))
        console.print(table)
    for row, title in zip(report.rows, named, strict=True):
        if row.note:
            console.print(f"{row.suite}/{row.metric} at {title}: {row.note}", soft_wrap=True)


def _fitting(lines: Sequence[Sequence[str]], width: int) -> Iterator[list[int]]:
    """The columns of each part of a table that is `width` letters wide: the first two, and those that fit beside them."""
    widths = [max(Text.from_markup(cell).cell_len for cell in column) + BORDER for column in zip(*lines, strict=True)]
    part = [0, 1]
    for place in range(2, len(widths)):
        if len(part) > 2 and sum(widths[each] for each in [*part, place]) + 1 > width:
            yield part
            part = [0, 1]
        part.append(place)
    yield part


def headline(rows: Sequence[Row]) -> Row | None:
    """The first suite's main metric at the strength nearest to 1; None where it could not be measured there."""
    for row in sorted(rows, key=lambda row: abs(row.strength - 1)):
        if row.suite == rows[0].suite and row.metric == METRICS[row.suite][0]:
            return row if row.n else None
    return None


def titles(rows: Sequence[Row]) -> list[str]:
    """The point of each row in words: its strength, or where there are several controls its class or mixture of classes."""
    if len({row.control for row in rows}) == 1:
        return [f"strength {row.strength:g}" for row in rows]
    return [row.control if row.strength == 1.0 else f"{row.control} {row.strength:g}" for row in rows]


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    interval = "no interval" if row.low is None or row.high is None else f"{row.low:.3f}..{row.high:.3f}"
    return f"{row.value:.3f} [dim]{interval}[/dim]"
