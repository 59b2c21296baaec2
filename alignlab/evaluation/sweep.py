"""Every suite at every strength of a control."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignlab.evaluation import SUITES
from alignlab.evaluation.statistics import Measurement
from alignlab.evaluation.suite import Bench

log = logging.getLogger(__name__)
HEADLINES = {"toy": "reward", "preference": "accuracy", "fluency": "perplexity"}
"""The metric of each suite that stands for a run."""


@dataclass(frozen=True)
class Row:
    """One number of a report."""

    strength: float
    control: str
    suite: str
    metric: str
    value: float
    n: int
    low: float
    high: float


def sweep(
    bench: Bench, suites: Sequence[str], control: str, strengths: Sequence[float], log_values: Callable[[Row], None]
) -> list[Row]:
    """Measures every suite at every strength, in order."""
    built = {name: SUITES[name].build(bench) for name in suites}
    rows: list[Row] = []
    for strength in strengths:
        log.info("evaluation at strength %g: %s", strength, ", ".join(suites))
        for name, suite in built.items():
            rows += [_row(strength, control, name, measured) for measured in suite.measure(strength)]
    for row in rows:
        log_values(row)
    return rows


def headline(rows: Sequence[Row]) -> Row | None:
    """The first suite's main metric at the strength nearest to 1."""
    for row in sorted(rows, key=lambda row: abs(row.strength - 1)):
        if row.suite == rows[0].suite and row.metric == HEADLINES[row.suite]:
            return row
    return None


def _row(strength: float, control: str, suite: str, measured: Measurement) -> Row:
    return Row(strength, control, suite, measured.metric, measured.value, measured.n, measured.low, measured.high)
