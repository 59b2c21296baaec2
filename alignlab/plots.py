"""Figures of a run, from its ledger and its rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.evaluation.sweep import Row
from alignlab.tracking.ledger import Ledger

if TYPE_CHECKING:
    import pandas as pd

WIDTH, HEIGHT = 4.2, 3.2
"""Inches of one panel."""
SMALLEST_SPAN = 0.5
"""Of a dial's vertical axis, so that a change within the noise does not look like a fall."""


def draw_curves(ledger: Ledger, path: Path) -> Path:
    """One panel per stage: loss against optimiser step."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in ledger.history():
        for key, value in entry.items():
            if key.endswith("/loss"):
                curves[key.removesuffix("/loss")].append((entry["step"], value))
    figure, panels = _panels(max(1, len(curves)))
    for panel, (stage, points) in zip(panels, sorted(curves.items()), strict=False):
        steps, losses = zip(*sorted(points), strict=True)
        panel.plot(steps, losses, linewidth=1.2)
        panel.set(title=stage, xlabel="optimiser step", ylabel="loss")
    return _saved(figure, path)


def draw_dial(rows: Sequence[Row], path: Path) -> Path:
    """What turns and what must not: the first two metrics of the first suite against strength, with intervals."""
    first = [row for row in rows if row.suite == rows[0].suite]
    metrics = list(dict.fromkeys(row.metric for row in first))[:2]
    figure, panels = _panels(len(metrics))
    for panel, metric in zip(panels, metrics, strict=True):
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
    return _saved(figure, path)


def draw_profile(profile: Mapping[str, Any], path: Path) -> Path:
    """What a stage that looks has measured: a panel for each series against the same axis."""
    axis = profile["x"]
    figure, panels = _panels(len(profile["series"]))
    for panel, (name, values) in zip(panels, profile["series"].items(), strict=True):
        shown = [math.nan if value is None else value for value in values]
        panel.plot(axis["values"], shown, marker="o")
        panel.set(title=name, xlabel=axis["label"])
        panel.set_ylim(bottom=min(0.0, *(value for value in values if value is not None)))
        panel.set_xticks(axis["values"])
    figure.suptitle(profile["title"], fontsize="medium")
    return _saved(figure, path)


def draw_sweep(means: pd.DataFrame, path: Path, metrics: Sequence[tuple[str, str]]) -> Path:
    """One line per setting of a sweep (columns before `strength`): the mean over seeds, and a band from lowest to highest.

    A panel for each (suite, metric) along the strengths, and one of the first two against each other.
    """
    settings = list(means.columns[: means.columns.get_loc("strength")])
    groups = means.groupby(settings, sort=False, dropna=False) if settings else [((), means)]
    figure, panels = _panels(len(metrics) + 1)
    for names, rows in groups:
        # A setting that a run does not have is left out.
        label = ", ".join(
            f"{name.removesuffix('.name')}={value}"
            for name, value in zip(settings, names, strict=True)
            if str(value) not in ("nan", "none")
        )
        curves = [rows[(rows.suite == suite) & (rows.metric == metric)].sort_values("strength") for suite, metric in metrics]
        for panel, curve in zip(panels, curves, strict=False):
            panel.plot(curve.strength, curve["mean"], marker="o", markersize=3, label=label or None)
            panel.fill_between(curve.strength, curve.lowest, curve.highest, alpha=0.15, linewidth=0)
        both = curves[0].merge(curves[1], on="strength")
        panels[-1].plot(both["mean_y"], both["mean_x"], marker="o", markersize=3)
    for panel, (suite, metric) in zip(panels, metrics, strict=False):
        panel.set(title=f"{suite}/{metric}", xlabel="strength")
    panels[-1].set(title="along the dial", xlabel=metrics[1][1], ylabel=metrics[0][1])
    if settings:
        panels[0].legend(fontsize=6)
    return _saved(figure, path)


def draw_map(tables: Mapping[str, pd.DataFrame], path: Path) -> Path:
    """A heat map for each metric, the value written into every cell."""
    figure, panels = _panels(len(tables))
    for panel, (metric, table) in zip(panels, tables.items(), strict=True):
        panel.grid(visible=False)
        image = panel.imshow(table.to_numpy(), aspect="auto", cmap="viridis")
        panel.set_xticks(range(len(table.columns)), table.columns)
        panel.set_yticks(range(len(table.index)), table.index)
        panel.set(title=f"{metric} at strength 1", xlabel=table.columns.name, ylabel=table.index.name)
        low, high = image.get_clim()
        for row, values in enumerate(table.to_numpy()):
            for column, value in enumerate(values):
                dark = value < (low + high) / 2
                panel.text(column, row, f"{value:.3f}", ha="center", va="center", color="white" if dark else "black")
    return _saved(figure, path)


def _panels(count: int) -> tuple[Any, list[Any]]:
    # The figure class is used directly: pyplot would pick a display and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH * count, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0]
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(panels)


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path
