"""The strengths at which a tuner was seen to hold: the backbone's capability, or its perplexity, is kept within a tolerance.

The rule: of one metric, `MetricAt` each measured strength, the difference from strength 0 on the same items, in the worse
direction, is at most `tolerance` of the value at strength 0, and so is the end of its 95 % interval (`statistics.paired`). The
range is the run of neighbouring measured strengths around 0 of which all hold. Between two of them nothing was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignlab.evaluation.config import WATCHED, SafeRangeConfig
from alignlab.evaluation.report import Row
from alignlab.evaluation.statistics import paired
from alignlab.files import write_whole

FILE = "safe_range.json"
"""Beside what a run has learned."""


@dataclass(frozen=True)
class MetricAt:
    """The metric at one strength. `worse`: by how much it is worse than at strength 0 (negative: better), from `low` to `high`
    with 95 % confidence, None where that cannot be estimated; `n`: items that both have."""

    strength: float
    value: float
    n: int
    worse: float
    low: float | None
    high: float | None
    holds: bool


@dataclass(frozen=True)
class SafeRange:
    """`low` to `high`: the strengths that were seen to hold. `metric`: SUITE/METRIC; `tolerance`: of its value at strength 0;
    `points`: what was measured, by strength."""

    low: float
    high: float
    metric: str
    tolerance: float
    points: tuple[MetricAt, ...]

    def contains(self, strength: float) -> bool:
        """Whether a strength is inside, ends included."""
        return self.low <= strength <= self.high

    def clamped(self, strength: float) -> float:
        """The nearest strength inside."""
        return min(max(strength, self.low), self.high)

    @property
    def span(self) -> str:
        """From where to where, behind "the safe range": "0 to 1.5", or "of 0 alone"."""
        return f"{self.low:g} to {self.high:g}" if self.low < self.high else f"of {self.low:g} alone"

    @property
    def sentence(self) -> str:
        """For a card or a warning."""
        start = next(point for point in self.points if point.strength == 0)
        backbone = f"the backbone's {start.value:.3g} (n {start.n})"
        if len(self.points) == 1:
            return f"no strength but 0 was measured: there {self.metric} is {backbone}"
        if self.low == self.high:
            return (
                f"only strength 0 was seen to hold: at the next measured ones {self.metric} may be more than"
                f" {self.tolerance:.0%} worse than {backbone}, by the 95 % interval of the difference"
            )
        return (
            f"strengths {self.low:g} to {self.high:g} were seen to hold: {self.metric} is at most {self.tolerance:.0%} worse"
            f" than {backbone}, the 95 % interval of the difference included"
        )


def measured_range(rows: Sequence[Row], config: SafeRangeConfig) -> SafeRange | None:
    """The range that an evaluation of a strength gives; None where it did not measure strength 0, or no metric that says what
    became of the backbone."""
    found = {f"{row.suite}/{row.metric}" for row in rows if row.n and row.strength == 0}
    metric = config.metric or next((name for name in WATCHED if name in found), None)
    if metric is None or metric not in found:
        return None
    of_metric = sorted((row for row in rows if row.n and f"{row.suite}/{row.metric}" == metric), key=lambda row: row.strength)
    start = next(row for row in of_metric if row.strength == 0)
    points = tuple(_at(row, start, WATCHED[metric], config.tolerance) for row in of_metric)
    place = next(number for number, point in enumerate(points) if point.strength == 0)
    first = last = place
    while first > 0 and points[first - 1].holds:
        first -= 1
    while last < len(points) - 1 and points[last + 1].holds:
        last += 1
    return SafeRange(points[first].strength, points[last].strength, metric, config.tolerance, points)


def _at(row: Row, start: Row, better: int, tolerance: float) -> MetricAt:
    """`better`: 1 where a higher value is, else -1. Without items in common, the row's own interval is taken."""
    allowed = tolerance * abs(start.value)
    if row.strength == 0:
        return MetricAt(0.0, row.value, row.n, 0.0, 0.0, 0.0, True)
    beside = paired(row.metric, [row.items], [start.items], row.scale)
    if beside is not None:
        n, worse = beside.n, -better * beside.value
        ends = [-better * end for end in (beside.low, beside.high) if not math.isnan(end)]
        if not ends and all(row.items[name] == start.items.get(name) for name in row.items):
            ends = [0.0, 0.0]  # not one item has changed
    else:
        n, worse = row.n, better * (start.value - row.value)
        ends = [better * (start.value - end) for end in (row.low, row.high) if end is not None]
    low, high = (min(ends), max(ends)) if ends else (None, None)
    return MetricAt(row.strength, row.value, n, worse, low, high, high is not None and max(worse, high) <= allowed)


def write_range(found: SafeRange, folder: Path) -> None:
    """Puts the range beside what a run has learned."""
    write_whole(folder / FILE, json.dumps(asdict(found), indent=2) + "\n")


def read_range(folder: Path) -> SafeRange | None:
    """The range of a run's folder, or of an adapter's; None where there is none, or none that can be read."""
    for file in (folder / FILE, *sorted(folder.glob(f"stages/*/result/**/{FILE}"))):
        try:
            held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return SafeRange(**{**held, "points": tuple(MetricAt(**point) for point in held["points"])})
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return None
