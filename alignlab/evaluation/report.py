"""The results of a run: rows, report.json, and a table for the person at the keyboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alignlab.evaluation import METRICS
from alignlab.tracking.ledger import Ledger

ITEMS = "items.json"
"""File of a run with the value of each item of each metric that is a mean over items, for comparisons item by item."""
ITEM_KEYS = ("strength", "control", "suite", "metric", "scale", "items")


@dataclass(frozen=True)
class Row:
    """One number of a report. `low`, `high`: of the 95 % interval, None where it cannot be estimated. `items`, `scale`: as in
    `Measurement`; they stand in ITEMS, not in the report."""

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

    @property
    def plain(self) -> dict[str, Any]:
        """The row without its items."""
        return {key: value for key, value in vars(self).items() if key not in ("items", "scale")}


@dataclass(frozen=True)
class Report:
    """Where the report is, its headline number (None without evaluation), and its rows."""

    path: Path
    value: float | None
    rows: Sequence[Row]


def write_report(ledger: Ledger, names: Mapping[str, Any], rows: Sequence[Row]) -> Report:
    """Writes report.json: who the run is, its headline, and a list of rows; and the values of their items to ITEMS."""
    first = headline(rows) if rows else None
    shown = {"metric": f"{first.suite}/{first.metric}", "value": first.value} if first else None
    measured = [{**row.plain, "items": row.items, "scale": row.scale} for row in rows if row.items]
    ledger.write(ITEMS, {"results": [{key: row[key] for key in ITEM_KEYS} for row in measured]}, indent=None)
    path = ledger.write("report.json", {**names, "headline": shown, "results": [row.plain for row in rows]})
    return Report(path, first.value if first else None, rows)


def show(report: Report, console: Console) -> None:
    """Metrics down, strengths or classes across, each with its interval."""
    if not report.rows:
        return
    named = titles(report.rows)
    columns = list(dict.fromkeys(named))
    table = Table(title="results (value with 95 % interval)", title_justify="left")
    table.add_column("metric", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    cells = {(row.suite, row.metric, title): row for row, title in zip(report.rows, named, strict=True)}
    for suite, metric in dict.fromkeys((row.suite, row.metric) for row in report.rows):
        found = [cells.get((suite, metric, title)) for title in columns]
        n = next(row.n for row in found if row)
        table.add_row(f"{suite}/{metric}", str(n), *(_cell(row) for row in found))
    console.print(table)


def headline(rows: Sequence[Row]) -> Row | None:
    """The first suite's main metric at the strength nearest to 1; None where it was not measured."""
    for row in sorted(rows, key=lambda row: abs(row.strength - 1)):
        if row.suite == rows[0].suite and row.metric == METRICS[row.suite][0]:
            return row
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
