"""Figures of one run, from its ledger and its rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.plots.panels import panels, saved
from alignlab.tracking.ledger import Ledger

if TYPE_CHECKING:
    from alignlab.evaluation.report import Row

SMALLEST_SPAN = 0.5
"""Of a dial's vertical axis, so that a change within the noise does not look like a fall."""


def draw_curves(ledger: Ledger, path: Path) -> Path:
    """One panel per stage, loss against optimiser step; and one for each number that was measured on the way."""
    losses, measured = losses_of(ledger), validation_of(ledger)
    curves = [(stage, "loss", points) for stage, points in sorted(losses.items())]
    curves += [(stage, metric, points) for (stage, metric), points in sorted(measured.items())]
    figure, drawn = panels(max(1, len(curves)))
    for panel, (stage, metric, points) in zip(drawn, curves, strict=False):
        steps, values = zip(*sorted(points), strict=True)
        panel.plot(steps, values, linewidth=1.2, marker="o" if (stage, metric) in measured else None, markersize=3)
        panel.set(title=stage, xlabel="optimiser step", ylabel=metric.replace("_", " "))
    return saved(figure, path)


def losses_of(ledger: Ledger) -> dict[str, list[tuple[int, float]]]:
    """From stage to its losses, each with its optimiser step."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in ledger.history():
        for key, value in entry.items():
            if key.endswith("/loss"):
                curves[key.removesuffix("/loss")].append((entry["step"], value))
    return curves


def validation_of(ledger: Ledger) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """From stage and metric to the metric's values while the stage trained, each with its optimiser step."""
    curves: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for entry in ledger.history():
        for key, value in entry.items():
            stage, found, metric = key.partition("/validation/")
            if found:
                curves[stage, metric].append((entry["step"], value))
    return curves


def draw_dial(rows: Sequence[Row], path: Path) -> Path:
    """What turns and what must not: the first two metrics of the first suite against strength, with intervals."""
    first = [row for row in rows if row.suite == rows[0].suite]
    metrics = list(dict.fromkeys(row.metric for row in first))[:2]
    figure, drawn = panels(len(metrics))
    for panel, metric in zip(drawn, metrics, strict=True):
        chosen = sorted((row for row in first if row.metric == metric), key=lambda row: row.strength)
        strengths = [row.strength for row in chosen]
        values = [row.value for row in chosen]
        panel.fill_between(strengths, [row.low for row in chosen], [row.high for row in chosen], alpha=0.2, linewidth=0)
        panel.plot(strengths, values, marker="o")
        panel.set(title=f"{chosen[0].suite}/{metric} (n = {chosen[0].n})", xlabel="strength")
        low, high = panel.get_ylim()
        missing = max(0.0, SMALLEST_SPAN - (high - low)) / 2
        panel.set_ylim(low - missing, high + missing)
        panel.axvline(1.0, linewidth=0.8, linestyle=":", color="grey")
    return saved(figure, path)


def draw_profile(profile: Mapping[str, Any], path: Path) -> Path:
    """What a stage that looks has measured: a panel for each series against the same axis."""
    axis = profile["x"]
    figure, drawn = panels(len(profile["series"]))
    for panel, (name, values) in zip(drawn, profile["series"].items(), strict=True):
        shown = [math.nan if value is None else value for value in values]
        panel.plot(axis["values"], shown, marker="o")
        panel.set(title=name, xlabel=axis["label"])
        panel.set_ylim(bottom=min(0.0, *(value for value in values if value is not None)))
        panel.set_xticks(axis["values"])
    figure.suptitle(profile["title"], fontsize="medium")
    return saved(figure, path)
