"""The lines of a sweep's table: a line per row, settings and strength or class; a cell is the same number of all its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.errors import ConfigError
from alignlab.evaluation.statistics import Measurement, bootstrap
from alignlab.records import ACROSS, NO_CLASS
from alignlab.registry import unknown
from alignlab.tables.jobs import Seen, Sweep

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Selection:
    """What a table is to show. `metrics`: suite/metric, none = all. `strengths`: None = all. `baseline`: a row, "" = first."""

    metrics: tuple[str, ...] = ()
    strengths: tuple[float, ...] | None = (1.0,)
    baseline: str = ""


@dataclass(frozen=True)
class Line:
    """One line. `strength`, `control`: None and "" where no job of it has been measured. `first`: whether this is the point
    that stands beside those of other kinds: the first class beside a dial."""

    label: str
    row: str
    settings: Mapping[str, str]
    jobs: tuple[Seen, ...]
    strength: float | None = None
    control: str = ""
    classes: bool = False
    first: bool = True

    @property
    def key(self) -> tuple[str, str]:
        """What no other line of its table has."""
        return self.label, self.point

    @property
    def point(self) -> str:
        """Strength or class, in words."""
        if self.strength is None:
            return ""
        if not self.classes:
            return f"{self.strength:g}"
        return self.control if self.strength == 1 else f"{self.control} {self.strength:g}"

    def measured(self, metric: str) -> dict[int, Mapping[str, Any]]:
        """From seed to the row of its report, for the seeds that have this number."""
        suite, _, name = metric.partition("/")
        return {
            seen.job.seed: result
            for seen in self.jobs
            for result in seen.results
            if (result["strength"], result["control"]) == (self.strength, self.control)
            and (result["suite"], result["metric"]) == (suite, name)
        }

    def mark(self, metric: str) -> str:
        """Why seeds are missing from a cell: "2/3, 1 failed"; "" where none is missing, the bare state where all are. A seed
        that the table does not name is told: "1 extra seed"."""
        found = self.measured(metric)
        lost: dict[str, int] = {}
        for seen in self.jobs:
            if seen.job.seed not in found:
                why = NOT_MEASURED if seen.state.name == "done" else seen.state.name
                lost[why] = lost.get(why, 0) + 1
        if not found and len(lost) == 1:
            return next(iter(lost))
        extra = sum(seen.extra and seen.job.seed in found for seen in self.jobs)
        counts = [f"{len(found)}/{len(self.jobs)}", *(f"{count} {why}" for why, count in lost.items())] if lost else []
        return ", ".join([*counts, *([f"{extra} extra seed{'s' if extra > 1 else ''}"] if extra else [])])


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for one seed), lowest and highest over seeds."""

    mean: float
    deviation: float | None
    lowest: float
    highest: float
    seeds: int
    items: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """What a sweep has obtained. `lines`: those asked for, `every`: those at all strengths. `baseline`: the row, or the label
    where a sweep has no rows, that every line is compared with."""

    sweep: Sweep
    lines: tuple[Line, ...]
    every: tuple[Line, ...]
    metrics: tuple[str, ...]
    baseline: str


def spread(line: Line, metric: str) -> Spread | None:
    """A cell, None where no seed has the number."""
    found = line.measured(metric)
    values = [float(result["value"]) for result in found.values()]
    if not values:
        return None
    items = tuple(sorted({int(result["n"]) for result in found.values()}))
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, min(values), max(values), len(values), items)


def difference(table: Table, line: Line, metric: str) -> Measurement | None:
    """The line minus the baseline's, paired by seed: the mean, how many pairs, and the percentile bootstrap's 95 % interval.

    None for the baseline itself, where no seed has both numbers, and where no line of the baseline stands beside this one.
    With a single pair the interval is not a number.
    """
    base = _baseline_of(table, line)
    if base is None:
        return None
    own, other = line.measured(metric), base.measured(metric)
    pairs = [float(own[seed]["value"]) - float(other[seed]["value"]) for seed in own if seed in other]
    if not pairs:
        return None
    if len(pairs) == 1:
        return Measurement(metric, pairs[0], 1, float("nan"), float("nan"))
    return bootstrap(metric, pairs)


def table_of(sweep: Sweep, asked: Selection) -> Table:
    """The table of a sweep. Raises ConfigError for a metric, strength or baseline that it does not have."""
    lines = tuple(_lines(sweep, asked.strengths))
    measured = [result for seen in sweep.jobs for result in seen.results]
    if measured and not any(line.strength is not None for line in lines):
        strengths = ", ".join(f"{strength:g}" for strength in sorted({result["strength"] for result in measured}))
        wanted = " ".join(f"{strength:g}" for strength in asked.strengths or ())
        raise ConfigError(f"no job of {sweep.name} was measured at --strength {wanted}; known: {strengths}, or all.")
    known = dict.fromkeys(f"{result['suite']}/{result['metric']}" for result in measured)
    for metric in asked.metrics:
        if measured and metric not in known:
            raise ConfigError(unknown("metric", metric, known))
    labels = list(dict.fromkeys(_compared(line) for line in lines))
    if asked.baseline and asked.baseline not in labels:
        raise ConfigError(unknown("baseline", asked.baseline, labels))
    return Table(sweep, lines, tuple(_lines(sweep, None)), asked.metrics or tuple(known), asked.baseline or labels[0])


def _lines(sweep: Sweep, strengths: Sequence[float] | None) -> Iterable[Line]:
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Seen]] = {}
    for seen in sweep.jobs:
        groups.setdefault((seen.job.row, tuple(sorted(seen.job.settings.items()))), []).append(seen)
    for (row, settings), jobs in groups.items():
        line = Line(sweep.label(jobs[0]), row, dict(settings), tuple(jobs))
        points = list(dict.fromkeys((result["strength"], result["control"]) for seen in jobs for result in seen.results))
        classes = any(control in (NO_CLASS, ACROSS) for _, control in points)
        asked = [place for place in points if strengths is None or place[0] in strengths]
        if not asked:
            yield line
        for strength, control in asked:
            first = not classes or (strength, control) == points[0]
            yield Line(line.label, row, line.settings, line.jobs, strength, control, classes, first)


def _compared(line: Line) -> str:
    """What a baseline names: a row, or the label of a sweep without rows."""
    return line.row or line.label


def _baseline_of(table: Table, line: Line) -> Line | None:
    """The baseline's line of the same settings at the same point; the first class stands beside a dial at strength 1."""
    if _compared(line) == table.baseline or line.strength is None:
        return None
    for other in table.lines:
        same_settings = not line.row or other.settings == line.settings
        if _compared(other) == table.baseline and same_settings and _side_by_side(line, other):
            return other
    return None


def _side_by_side(line: Line, other: Line) -> bool:
    if line.strength != other.strength:
        return False
    if line.classes and other.classes:
        return line.control == other.control
    return line.first and other.first
