"""A sweep's table as blocks of words, for Markdown, LaTeX and HTML alike: rows down, metrics across, a block per suite."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from alignlab.evaluation.statistics import CONFIDENCE, RESAMPLES, Measurement
from alignlab.tables.jobs import told
from alignlab.tables.lines import Line, Spread, Table, difference, spread
from alignlab.tables.published import NOT_KNOWN, NOT_RUN, Pairs, Published, beside, beyond, path_for

NOTHING = "-"


@dataclass(frozen=True)
class Block:
    """A title, cells of words, and sentences below."""

    title: str
    cells: pd.DataFrame
    notes: tuple[str, ...] = ()


def blocks_of(table: Table, published: Published | None, experiments: Path) -> list[Block]:
    """What was obtained, a block per suite, and what is published."""
    pairs = beside(table, published)
    suites = list(dict.fromkeys(metric.partition("/")[0] for metric in table.metrics)) or [""]
    made = [_suite(table, suite, published, pairs) for suite in suites]
    compared = any(name.endswith(_minus(table)) for block in made for name in block.cells.columns)
    made[-1] = replace(made[-1], notes=_reading(table)[: 2 if compared else 1])
    return [*made, *_published(table, published, pairs, experiments)]


def number(value: float) -> str:
    """Three decimals; two digits for a number that would look like zero."""
    return f"{value:.2g}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


def _suite(table: Table, suite: str, published: Published | None, pairs: Pairs) -> Block:
    metrics = [metric for metric in table.metrics if metric.partition("/")[0] == suite]
    # A point at which this suite measures nothing, such as one class for a suite that compares classes, is left out.
    lines = [line for line in table.lines if line.strength is None or not metrics or any(map(line.measured, metrics))]
    rows = [_row(table, line, metrics, published, pairs.get(line.key)) for line in lines]
    cells = pd.DataFrame(rows).fillna(NOTHING)
    empty = [name for name in cells.columns if (cells[name] == NOTHING).all() and name.endswith(_minus(table))]
    return Block(suite or "jobs", cells.drop(columns=empty))


def _reading(table: Table) -> tuple[str, ...]:
    """How the columns are to be read."""
    return (
        "mean ± sample standard deviation over seeds; n is the number of items per seed.",
        f'Columns that end in "{_minus(table).strip()}": the mean difference, paired by seed, with the'
        f" {CONFIDENCE:.0%} percentile bootstrap interval over seeds ({RESAMPLES:,} resamples, fixed seed). It never reaches"
        " beyond the lowest and the highest difference, so with few seeds it is too narrow.",
    )


def _row(table: Table, line: Line, metrics: list[str], published: Published | None, printed_row: str | None) -> dict[str, str]:
    spreads = {metric: spread(line, metric) for metric in metrics}
    items = sorted({count for cell in spreads.values() if cell for count in cell.items})
    done = sum(seen.state.name == "done" for seen in line.jobs)
    row = {
        "row": line.label,
        "at": line.point or NOTHING,
        "seeds": _states(line, done),
        "n": NOTHING if not items else str(items[0]) if len(items) == 1 else f"{items[0]} to {items[-1]}",
    }
    for metric in metrics:
        name = metric.partition("/")[2]
        row[name] = _cell(spreads[metric], line, metric)
        row[f"{name}{_minus(table)}"] = _difference(difference(table, line, metric), len(line.jobs))
        if published is not None and published.column(metric):
            printed = published.printed(printed_row, metric)
            row[f"{name}, published"] = printed or NOT_KNOWN
            row[f"{name} - published"] = _beyond(spreads[metric], printed)
    return row


def _minus(table: Table) -> str:
    return f" - {table.baseline}"


def _states(line: Line, done: int) -> str:
    lost = told([seen for seen in line.jobs if seen.state.name != "done"])
    return f"{done}/{len(line.jobs)}, {lost}" if lost else str(done)


def _cell(found: Spread | None, line: Line, metric: str) -> str:
    mark = line.mark(metric)
    if found is None:
        return mark
    words = number(found.mean) if found.deviation is None else f"{number(found.mean)} ± {number(found.deviation)}"
    return f"{words} ({mark})" if mark else words


def _difference(made: Measurement | None, declared: int) -> str:
    if made is None:
        return NOTHING
    if math.isnan(made.low):
        return f"{made.value:+.3f} (1 pair: no interval)"
    few = f" ({made.n} pairs)" if made.n < declared else ""
    return f"{made.value:+.3f} [{made.low:+.3f}, {made.high:+.3f}]{few}"


def _beyond(found: Spread | None, printed: str) -> str:
    made = beyond(found.mean, printed) if found else None
    return NOTHING if made is None else f"{made:+.3f}"


def _published(table: Table, published: Published | None, pairs: Pairs, experiments: Path) -> list[Block]:
    """Every published row, with the line of ours that stands beside it."""
    if published is None:
        path = path_for(table.sweep.name, experiments)
        return [Block("published", pd.DataFrame(), (f"Published numbers: {NOT_KNOWN}; there is no {path}.",))]
    ours = {row: line for line in table.every if (row := pairs.get(line.key))}
    rows = []
    for row, printed in published.rows.items():
        line = ours.get(row)
        told = {"ours": _named(line) if line else NOT_RUN} if published.same_scale else {}
        rows.append({"row": row, **told, **{name: value or NOT_KNOWN for name, value in printed.items()}})
    if not published.same_scale:
        notes = ["This sweep is at the toy scale: another model, other data and other metrics, so no difference is formed."]
    else:
        notes = ["A difference is formed only where a column has the name of one of our metrics."]
        lonely: dict[str, list[str]] = {}
        for line in table.lines:
            if line.key not in pairs:
                lonely.setdefault(line.label, []).append(line.point)
        alone = "; ".join(_at(label, ", ".join(points)) for label, points in lonely.items())
        notes += [f"No published row was found for: {alone}."] if lonely else []
    title = "published" if published.same_scale else "published (paper's scale, other metric)"
    return [Block(title, pd.DataFrame(rows), (*notes, f"Source: {published.path}."))]


def _named(line: Line) -> str:
    return _at(line.label, line.point) if line.point else f"{line.label} ({told(line.jobs)})"


def _at(label: str, point: str) -> str:
    return f"{label} at {point}" if point else label
