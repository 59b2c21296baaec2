"""A sweep's table as text: the paper's published numbers next to ours, one section per suite, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from alignlab.errors import DataError
from alignlab.evaluation.statistics import CONFIDENCE, RESAMPLES
from alignlab.tables.sweep import Aggregate, Difference, Table, TableRow, aggregate, count_states, difference, own_interval

FILE, COLUMNS = "published.csv", "columns.csv"
"""The numbers of a paper's table; and what each of its columns stands for, beside it or beside the folders of all tables of the
paper (then with the folder as `table`): column, metric (suite/metric, empty for none of ours), setting (of its jobs,
`key=value`, several with spaces between, or empty), times (of ours, to compare). In a paper's file also `strength`,
`aggregation`, `differs` (what is not as published), and where there is no metric `reason`."""
TOY = "toy"
Matches = Mapping[tuple[str, str], str]
"""From the key of a row of ours to the published row it is compared with."""
NOT_KNOWN, NOT_RUN = "not known", "not run"
NOTHING = "-"
LONGEST_TITLE = 12
"""Characters of the baseline's name in titles of columns."""
TRIAL = "A trial (scale=smoke), cut to seconds: its numbers say only that every job goes through."
TEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "\\": "\\textbackslash{}",
        "<": "$<$",
        ">": "$>$",
        "|": "$|$",
        "±": "$\\pm$",
    }
)


@dataclass(frozen=True)
class Column:
    """What a published column stands for: our suite/metric, of jobs with these settings ("" = all), ours being multiplied.
    `differs`: what is not as published, though the metric is the same; `reason`: why there is no metric."""

    metric: str
    setting: str = ""
    times: float = 1.0
    differs: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Published:
    """The numbers of a paper's table as printed, "" if none is known. `same_scale`: whether the sweep is at the paper's
    scale, so that a column of the same name is the same metric. `stands_for`: what columns of other names mean."""

    path: Path
    same_scale: bool
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]
    stands_for: Mapping[str, Column] = field(default_factory=dict)

    def column(self, metric: str, settings: Mapping[str, str]) -> str | None:
        """The column that is compared with our suite/metric of jobs with these settings, at the paper's scale only: one that
        stands for it, or one of the same name."""
        if not self.same_scale:
            return None
        having = {f"{key}={value}" for key, value in settings.items()}
        mapped = (
            name
            for name, meant in self.stands_for.items()
            if meant.metric == metric and having.issuperset(meant.setting.split())
        )
        named = (n for n in self.columns if n not in self.stands_for and n in (metric, metric.partition("/")[2]))
        return next(mapped, None) or next(named, None)

    def printed(self, row: str | None, metric: str, settings: Mapping[str, str]) -> tuple[str, float]:
        """The printed number in a row for our suite/metric, "" if none is known; and what ours is multiplied by."""
        column = self.column(metric, settings)
        if row is None or column is None:
            return "", 1.0
        return self.rows[row][column], self.stands_for[column].times if column in self.stands_for else 1.0

    def part(self, settings: Mapping[str, str]) -> tuple[str, ...]:
        """Which of the settings that columns are of a job has: a row of the paper has a number for each of them."""
        asked = {setting for meant in self.stands_for.values() for setting in meant.setting.split()}
        return tuple(sorted(asked & {f"{key}={value}" for key, value in settings.items()}))


def published_for(name: str, experiments: Path, *, trial: bool = False) -> Published | None:
    """The published table of a sweep, None without a file. `X/toy/T` has the numbers of `X/T`, and so has a sweep with more
    overrides, `X/T+key=value`. `trial`: a sweep that was cut, and is compared with none of them. Raises DataError for a file
    without rows."""
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
    folder = path.parent
    stands_for = {**_columns(folder.parent / COLUMNS, folder.name), **_columns(folder / COLUMNS, "")}
    return Published(path, not (trial or _is_toy(name)), columns, rows, stands_for)


def _columns(path: Path, table: str) -> dict[str, Column]:
    """What the columns of a published table stand for. Raises DataError for a line without a column."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if (line.get("table") or "") == table]
    try:
        return {
            line["column"]: Column(
                line["metric"],
                line["setting"],
                float(line["times"] or 1),
                line.get("differs") or "",
                line.get("reason") or "",
            )
            for line in lines
        }
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} must have the columns column, metric, setting and times, a number ({error}).") from error


def minus_published(mean: float, printed: str) -> float | None:
    """Ours minus the printed number, None if what is printed is no number."""
    try:
        return mean - float(printed)
    except ValueError:
        return None


def path_for(name: str, experiments: Path) -> Path:
    """The file of the published numbers of a sweep, which need not exist."""
    parts = [part for part in name.partition("+")[0].split("/") if part != TOY]
    return experiments.joinpath(*parts) / FILE


def match_published(table: Table, published: Published | None) -> Matches:
    """From the key of each of our rows at any strength to the published row it is compared with; empty at the toy scale.

    A row is looked up as `row`, `row-MODEL` (both at strength 1 or the first class only) and `row-STRENGTH-MODEL`; models are
    compared by their letters and digits (llama32_3b is llama-3.2-3b). A published row that fits several of ours fits none.
    """
    if published is None or not published.same_scale:
        return {}
    found = {row.key: paper_row for row in table.all_rows if (paper_row := _row_of(row, published)) is not None}
    parts = {row.key: published.part(all_settings(table, row)) for row in table.all_rows}
    shared = Counter((paper_row, parts[key]) for key, paper_row in found.items())
    return {key: paper_row for key, paper_row in found.items() if shared[paper_row, parts[key]] == 1}


def _row_of(row: TableRow, published: Published) -> str | None:
    candidates = ((paper_row, name, strength) for name, strength in _names(row) for paper_row in published.rows)
    return next((paper_row for paper_row, name, strength in candidates if _is_called(paper_row, name, strength, row)), None)


def _names(row: TableRow) -> Iterator[tuple[str, float | None]]:
    """How the name of its published row may begin, and at which strength; the more exact first."""
    name = row.row or "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in row.settings.items() if key != "model")
    if not name or not row.first:
        return
    if row.strength is not None:
        yield name, row.strength
    if row.strength in (None, 1.0):
        yield name, None


def _is_called(paper_row: str, name: str, strength: float | None, row: TableRow) -> bool:
    if not paper_row.startswith(name):
        return False
    rest = paper_row.removeprefix(name)
    if strength is not None:
        number = re.match(r"-(\d+(?:\.\d+)?)(?=-|$)", rest)
        if number is None or float(number[1]) != strength:
            return False
        rest = rest[number.end() :]
    models: Sequence[str] = ["", *(_plain(job.model) for job in row.jobs if job.model)]
    return (not rest or rest.startswith("-")) and _plain(rest) in models


def called(row: str, model: str, published: Iterable[str]) -> str | None:
    """The published row that a row on a backbone is called; None without one."""
    return next((name for name in published if _plain(name) in (_plain(row), _plain(row + model))), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_toy(name: str) -> bool:
    return TOY in name.partition("+")[0].split("/")[1:]


@dataclass(frozen=True)
class Section:
    """A part of the output: a title, cells of text, and notes below them."""

    title: str
    cells: pd.DataFrame
    notes: tuple[str, ...] = ()


def sections_of(table: Table, published: Published | None, experiments: Path) -> list[Section]:
    """One section per suite with our results, and one with the published numbers."""
    matches = match_published(table, published)
    suites = list(dict.fromkeys(metric.partition("/")[0] for metric in table.metrics)) or [""]
    sections = [_suite(table, suite, published, matches) for suite in suites]
    compared = any(name.endswith(_minus(table)) for section in sections for name in section.cells.columns)
    trial = (f"{TRIAL} No difference from published numbers is formed.",) if table.sweep.trial else ()
    sections[-1] = replace(sections[-1], notes=(*trial, *_reading(table)[: 2 if compared else 1]))
    return [*sections, *_published(table, published, matches, experiments)]


def number(value: float) -> str:
    """Three decimals; two significant digits for a number that would round to zero."""
    return f"{value:.2g}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


def _suite(table: Table, suite: str, published: Published | None, matches: Matches) -> Section:
    metrics = [metric for metric in table.metrics if metric.partition("/")[0] == suite]
    # rows at which this suite measures nothing are left out, such as a single class for a suite that compares classes
    rows = [row for row in table.rows if row.strength is None or not metrics or any(map(row.measured, metrics))]
    cells = pd.DataFrame([_cells(table, row, metrics, published, matches.get(row.key)) for row in rows]).fillna(NOTHING)
    empty = [name for name in cells.columns if (cells[name] == NOTHING).all() and name.endswith(_minus(table))]
    mark = " (trial)" if table.sweep.trial else ""
    return Section(f"{suite or 'jobs'}{mark}", cells.drop(columns=empty))


def _reading(table: Table) -> tuple[str, ...]:
    """What the columns show."""
    return (
        "mean ± sample standard deviation over seeds; n is the number of items per seed.",
        f'Columns that end in "{_minus(table).strip()}": the mean difference from {table.baseline} over seeds and its'
        f" {CONFIDENCE:.0%} interval: the paired bootstrap over the items and seeds that both rows have ({RESAMPLES:,}"
        " resamples, fixed seed), which is too narrow where three seeds differ more than items do; or, marked as by seeds,"
        " Student's interval over seeds, where a run kept no items or the metric is no mean of items.",
    )


def _cells(
    table: Table, row: TableRow, metrics: list[str], published: Published | None, paper_row: str | None
) -> dict[str, str]:
    found = {metric: aggregate(row, metric) for metric in metrics}
    items = sorted({count for each in found.values() if each for count in each.items})
    done = sum(job.state.name == "done" for job in row.jobs)
    cells = {
        "row": row.label,
        "at": row.point or NOTHING,
        "seeds": _states(row, done),
        "n": NOTHING if not items else str(items[0]) if len(items) == 1 else f"{items[0]} to {items[-1]}",
    }
    for metric in metrics:
        name = metric.partition("/")[2]
        cells[name] = _cell(found[metric], row, metric)
        cells[f"{name}{_minus(table)}"] = _difference(difference(table, row, metric), len(row.jobs))
        settings = all_settings(table, row)
        if published is not None and published.column(metric, settings):
            printed, times = published.printed(paper_row, metric, settings)
            cells[f"{name}, published"] = printed or NOT_KNOWN
            cells[f"{name} - published"] = _minus_published(found[metric], printed, times, own_interval(row, metric))
    return cells


def all_settings(table: Table, row: TableRow) -> dict[str, str]:
    """The settings in which rows differ, and those that the command gave all of them."""
    shared = (word.partition("=") for word in table.sweep.ledger.overrides())
    return {**{key.lstrip("+"): value for key, _, value in shared}, **row.settings}


def _minus(table: Table) -> str:
    """The end of a difference's title; a long name of what is subtracted is told below the table alone."""
    return f" - {table.baseline}" if len(table.baseline) <= LONGEST_TITLE else " - baseline"


def _states(row: TableRow, done: int) -> str:
    lost = count_states([job for job in row.jobs if job.state.name != "done"])
    return f"{done}/{len(row.jobs)}, {lost}" if lost else str(done)


def _cell(found: Aggregate | None, row: TableRow, metric: str) -> str:
    mark = row.mark(metric)
    if found is None:
        return mark
    text = number(found.mean) if found.deviation is None else f"{number(found.mean)} ± {number(found.deviation)}"
    return f"{text} ({mark})" if mark else text


def _difference(made: Difference | None, declared: int) -> str:
    if made is None:
        return NOTHING
    pairs = "1 pair" if made.seeds == 1 else f"{made.seeds} pairs"
    few = [pairs] if made.seeds < declared or declared == 1 else []
    if math.isnan(made.low):
        return f"{made.value:+.3f} ({pairs}: no interval)"
    marks = ", ".join([*few, *(["by seeds"] if made.items is None else [])])
    mark = f" ({marks})" if marks else ""
    return f"{made.value:+.3f} [{made.low:+.3f}, {made.high:+.3f}]{mark}"


def _minus_published(found: Aggregate | None, printed: str, times: float, interval: tuple[float, float]) -> str:
    made = minus_published(times * found.mean, printed) if found else None
    if made is None or math.isnan(interval[0]):
        return NOTHING if made is None else f"{made:+.3f}"
    low, high = (times * end - float(printed) for end in interval)
    return f"{made:+.3f} [{low:+.3f}, {high:+.3f}]"


def _published(table: Table, published: Published | None, matches: Matches, experiments: Path) -> list[Section]:
    """Every published row, with our row that is compared with it. No section for a sweep that is no table of a paper."""
    path = path_for(table.sweep.name, experiments).relative_to(experiments)
    file = f"experiments/{path.as_posix()}"  # no path of a machine
    if published is None:
        known = any((experiments / path.parts[0]).rglob(FILE))  # of other tables of the paper
        said = (f"Published numbers: {NOT_KNOWN}; there is no {file}.",)
        return [Section("published", pd.DataFrame(), said)] if known else []
    ours: dict[str, list[TableRow]] = {}
    for row in table.all_rows:
        if paper_row := matches.get(row.key):
            ours.setdefault(paper_row, []).append(row)
    cells = []
    for paper_row, printed in published.rows.items():
        own = ", ".join(map(_named, ours.get(paper_row, ())))
        compared = {"ours": own or NOT_RUN} if published.same_scale else {}
        cells.append({"row": paper_row, **compared, **{name: value or NOT_KNOWN for name, value in printed.items()}})
    if not published.same_scale:
        toy = "This sweep is at the toy scale: another model, other data and other metrics, so no difference is formed."
        notes = [TRIAL if table.sweep.trial else toy]
    else:
        notes = [
            "A difference is formed only where a column has the name of one of our metrics, or stands for it in columns.csv."
        ]
        unmatched: dict[str, list[str]] = {}
        for row in table.rows:
            if row.key not in matches:
                unmatched.setdefault(row.label, []).append(row.point)
        named = "; ".join(_at(label, ", ".join(points)) for label, points in unmatched.items())
        notes += [f"No published row was found for: {named}."] if unmatched else []
        told = {name: meant.differs or meant.reason for name, meant in published.stands_for.items()}
        notes += [f"{name}: {words}" for name, words in told.items() if words]
    title = "published" if published.same_scale else f"published (paper's scale{'' if table.sweep.trial else ', other metric'})"
    return [Section(title, pd.DataFrame(cells), (*notes, f"Source: {file}."))]


def _named(row: TableRow) -> str:
    return _at(row.label, row.point) if row.point else f"{row.label} ({count_states(row.jobs)})"


def _at(label: str, point: str) -> str:
    return f"{label} at {point}" if point else label


def markdown(title: str, sections: Sequence[Section]) -> str:
    """A heading, and a table per section with padded columns."""
    return "\n".join([f"# {title}", "", *(line for section in sections for line in _markdown(section))])


def latex(title: str, sections: Sequence[Section]) -> str:
    """A floating table per section; needs the package booktabs."""
    return f"% {' '.join(title.split())}; needs \\usepackage{{booktabs}}\n" + "\n".join(_latex(section) for section in sections)


def long_csv(table: Table, published: Published | None) -> str:
    """One line per row and metric, with everything known of it; an empty cell means not known, never zero."""
    matches = match_published(table, published)
    numbers = []
    for row in table.rows:
        paper_row = matches.get(row.key)
        settings = {name: row.settings.get(name, "") for name in table.sweep.settings}
        point = {"strength": row.strength, "control": row.control}
        for metric in table.metrics or ("",):
            found, compared = aggregate(row, metric), difference(table, row, metric)
            printed, times = published.printed(paper_row, metric, all_settings(table, row)) if published else ("", 1.0)
            numbers.append(
                {
                    "table": table.sweep.name,
                    "row": row.row,
                    **settings,
                    **point,
                    "suite": metric.partition("/")[0],
                    "metric": metric.partition("/")[2],
                    "mean": found.mean if found else None,
                    "deviation": found.deviation if found else None,
                    "lowest": found.lowest if found else None,
                    "highest": found.highest if found else None,
                    "seeds": found.seeds if found else 0,
                    "seeds_declared": len(row.jobs),
                    "mark": row.mark(metric),
                    "n_per_seed": " ".join(str(count) for count in found.items) if found else "",
                    "baseline": table.baseline if compared else "",
                    "difference": compared.value if compared else None,
                    "difference_low": compared.low if compared else None,
                    "difference_high": compared.high if compared else None,
                    "pairs": compared.seeds if compared else None,
                    "paired_items": compared.items if compared else None,
                    "resamples": RESAMPLES if compared and compared.items and not math.isnan(compared.low) else None,
                    "published_row": paper_row or "",
                    "published": printed,
                    "minus_published": minus_published(times * found.mean, printed) if found else None,
                }
            )
    return pd.DataFrame(numbers).astype({"pairs": "Int64", "paired_items": "Int64", "resamples": "Int64"}).to_csv(index=False)


def _markdown(section: Section) -> list[str]:
    made = [f"## {section.title}", ""]
    if not section.cells.empty:
        lines = [
            [_markdown_cell(name) for name in section.cells.columns],
            *([_markdown_cell(c) for c in row] for row in section.cells.to_numpy()),
        ]
        widths = [max(map(len, column)) for column in zip(*lines)]
        lines.insert(1, ["-" * width for width in widths])
        made += ["| " + " | ".join(c.ljust(width) for c, width in zip(line, widths)) + " |" for line in lines]
        made.append("")
    return [*made, *(line for note in section.notes for line in (note, ""))]


def _markdown_cell(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _latex(section: Section) -> str:
    notes = " ".join(_tex(note) for note in section.notes)
    if section.cells.empty:
        return notes + "\n"
    cells = section.cells.map(_tex).rename(columns=_tex)
    caption = f"{_tex(section.title)}. {notes}"
    return cells.style.hide(axis="index").to_latex(
        hrules=True, position="tbp", caption=caption, column_format="l" * len(cells.columns)
    )


def _tex(value: object) -> str:
    """Text escaped for LaTeX, with the signs of numbers in math mode."""
    return re.sub(r"(?<![\w-])([-+])(?=\d)", r"$\1$", str(value).translate(TEX))
