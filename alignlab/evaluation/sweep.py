"""Every suite at every point of a control: strengths, or classes and the mixtures between two of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignlab.errors import ConfigError
from alignlab.evaluation import SUITES
from alignlab.evaluation.config import FormConfig, StrengthConfig
from alignlab.evaluation.statistics import Measurement
from alignlab.evaluation.suite import EvaluationContext, Point, SuiteAcross
from alignlab.records import ACROSS, NO_CLASS

log = logging.getLogger(__name__)
HEADLINES = {
    "toy": "reward",
    "preference": "accuracy",
    "fluency": "perplexity",
    "classes": "class_accuracy",
    "classification": "accuracy",
}
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


def points(control: StrengthConfig | FormConfig, classes: Sequence[str] | None) -> list[Point]:
    """Where a policy is measured. Raises ConfigError for strengths between more than two classes."""
    if classes is None:
        return [Point(strength, control.name) for strength in control.strengths]
    if control.strengths and len(classes) != 2:
        raise ConfigError(f"control.strengths lie between two classes, and there are {', '.join(classes)}; set them to [].")
    alone = [Point(1.0, name, name) for name in (*classes, NO_CLASS)]
    return alone + [Point(strength, "/".join(classes)) for strength in control.strengths]


def sweep(
    context: EvaluationContext, suites: Sequence[str], where: Sequence[Point], log_values: Callable[[str, Row], None]
) -> list[Row]:
    """Measures every suite at every point, in order, and then what some say of all points together."""
    built = {name: SUITES[name].build(context) for name in suites}
    rows: list[Row] = []
    for point in where:
        log.info("evaluation at %s: %s", point.mixture or f"strength {point.strength:g}", ", ".join(suites))
        for name, suite in built.items():
            rows += [_row(point, name, measured) for measured in suite.measure(point)]
    for name, suite in built.items():
        if isinstance(suite, SuiteAcross):
            rows += [_row(Point(1.0, ACROSS), name, measured) for measured in suite.across(where)]
    for row, title in zip(rows, titles(rows), strict=True):
        log_values(title, row)
    return rows


def headline(rows: Sequence[Row]) -> Row | None:
    """The first suite's main metric at the strength nearest to 1."""
    for row in sorted(rows, key=lambda row: abs(row.strength - 1)):
        if row.suite == rows[0].suite and row.metric == HEADLINES[row.suite]:
            return row
    return None


def titles(rows: Sequence[Row]) -> list[str]:
    """The point of each row in words: its strength, or where there are several controls its class or mixture of classes."""
    if len({row.control for row in rows}) == 1:
        return [f"strength {row.strength:g}" for row in rows]
    return [row.control if row.strength == 1.0 else f"{row.control} {row.strength:g}" for row in rows]


def _row(point: Point, suite: str, measured: Measurement) -> Row:
    return Row(point.strength, point.control, suite, measured.metric, measured.value, measured.n, measured.low, measured.high)
