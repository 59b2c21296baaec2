"""Figures of many runs: along the dial, two metrics against each other, over two settings, and while they learn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.plots.panels import HEIGHT, SMALL, WIDTH, legend, panels, saved, styles

if TYPE_CHECKING:
    import pandas as pd

Metric = tuple[str, str]
"""A suite and its metric."""
Curve = Sequence[tuple[int, float]]
"""Optimiser steps with their values."""
BAND = "mean over seeds; band: lowest to highest, for a single seed its 95 % interval"
SMALL_CELL = 8
"""Points of the numbers in a heat map."""
LETTER = 0.085
"""Inches of a letter of an axis."""
AXIS = "strength (0: untouched, 1: trained)"


def draw_along(bands: pd.DataFrame, path: Path, metrics: Sequence[Metric]) -> Path:
    """A panel for each metric along the strengths, a line per setting (columns before `strength`), with a band."""
    figure, drawn = panels(len(metrics))
    _along(bands, drawn, metrics)
    legend(figure, drawn[0], BAND)
    return saved(figure, path)


def draw_frontier(bands: pd.DataFrame, path: Path, metrics: Sequence[Metric]) -> Path:
    """The first metric against the second, a line per setting along its dial, with both intervals."""
    figure, drawn = panels(1, WIDTH * 1.4, HEIGHT * 1.2)
    _frontier(bands, drawn[0], metrics)
    legend(figure, drawn[0], f"along the dial, the large point is strength 1\n{BAND.replace('band', 'bars')}")
    return saved(figure, path)


def draw_sweep(bands: pd.DataFrame, path: Path, metrics: Sequence[Metric]) -> Path:
    """Both: a panel for each metric along the strengths, and one of the first two against each other."""
    figure, drawn = panels(len(metrics) + 1)
    _along(bands, drawn[:-1], metrics)
    _frontier(bands, drawn[-1], metrics)
    legend(figure, drawn[0], f"{BAND}; right: along the dial, the large point is strength 1")
    return saved(figure, path)


def draw_learning(curves: Mapping[str, Mapping[str, Sequence[Curve]]], path: Path) -> Path:
    """From stage and setting to the loss of each seed: a panel per stage, the mean over seeds with a band."""
    figure, drawn = panels(max(1, len(curves)))
    labels = list(dict.fromkeys(label for stage in curves.values() for label in stage))
    looks = dict(zip(labels, styles(len(labels))))
    for panel, (stage, settings) in zip(drawn, curves.items()):
        for label, seeds in settings.items():
            look = {**looks[label], "marker": None}
            steps, means, lows, highs = zip(*_over_seeds(seeds), strict=True)
            panel.plot(steps, means, linewidth=1.2, label=f"{label} ({_counted(len(seeds), 'seed')})", **look)
            panel.fill_between(steps, lows, highs, alpha=0.15, linewidth=0, color=look["color"])
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set(title=f"stage {stage}", xlabel="optimiser step", ylabel="training loss")
    legend(figure, drawn[0], "mean over seeds; band: lowest to highest")
    return saved(figure, path)


def draw_map(tables: Mapping[str, pd.DataFrame], path: Path, note: str = "mean over seeds") -> Path:
    """A heat map for each metric, the value written into every cell; a cell without a finished run is empty and says so."""
    across = max(len(table.columns) for table in tables.values())
    down = max(len(table.index) for table in tables.values())
    figure, drawn = panels(len(tables), max(WIDTH, 1.6 + 0.62 * across), max(HEIGHT, 1.2 + 0.32 * down))
    for panel, (metric, table) in zip(drawn, tables.items(), strict=True):
        panel.grid(visible=False)
        # A mesh is drawn as shapes: an image would be a picture inside an SVG, which a page may refuse.
        image = panel.pcolormesh(range(len(table.columns)), range(len(table.index)), table.to_numpy(), cmap="viridis")
        panel.invert_yaxis()
        room = figure.get_size_inches()[0] / len(tables) / len(table.columns)
        slant = {"rotation": 30, "ha": "right"} if max(len(str(name)) for name in table.columns) * LETTER > 0.7 * room else {}
        panel.set_xticks(range(len(table.columns)), table.columns, **slant)
        panel.set_yticks(range(len(table.index)), table.index)
        panel.set(title=f"{metric} at strength 1", xlabel=table.columns.name, ylabel=table.index.name)
        low, high = image.get_clim()
        for row, values in enumerate(table.to_numpy()):
            for column, value in enumerate(values):
                missing = math.isnan(value)
                dark = not missing and value < (low + high) / 2
                words = "no run" if missing else f"{value:.3f}"
                panel.text(
                    column, row, words, ha="center", va="center", color="white" if dark else "black", fontsize=SMALL_CELL
                )
    figure.supxlabel(note, fontsize=SMALL)
    return saved(figure, path)


def _along(bands: pd.DataFrame, drawn: Sequence[Any], metrics: Sequence[Metric]) -> None:
    for label, look, rows in _settings(bands):
        for panel, metric in zip(drawn, metrics, strict=True):
            curve = _of(rows, metric)
            panel.plot(curve.strength, curve["mean"], markersize=4, linewidth=1.2, label=label, **look)
            panel.fill_between(curve.strength, curve.low, curve.high, alpha=0.15, linewidth=0, color=look["color"])
    for panel, metric in zip(drawn, metrics, strict=True):
        panel.set(title="/".join(metric), xlabel=AXIS, ylabel=f"{metric[1]} ({_items(_of(bands, metric))})")


def _frontier(bands: pd.DataFrame, panel: Any, metrics: Sequence[Metric]) -> None:
    for label, look, rows in _settings(bands):
        both = _of(rows, metrics[0]).merge(_of(rows, metrics[1]), on="strength", suffixes=("", "_across"))
        panel.errorbar(
            both["mean_across"],
            both["mean"],
            xerr=_bars(both, "_across"),
            yerr=_bars(both, ""),
            markersize=4,
            linewidth=1.0,
            elinewidth=0.8,
            label=label,
            **look,
        )
        trained = both[both.strength == 1]
        panel.plot(trained["mean_across"], trained["mean"], markersize=9, **{**look, "linestyle": "none"})
    across, up = metrics[1], metrics[0]
    panel.set(
        title=f"{'/'.join(up)} against {'/'.join(across)}", xlabel=across[1], ylabel=f"{up[1]} ({_items(_of(bands, up))})"
    )


def _bars(rows: pd.DataFrame, side: str) -> list[Any]:
    mean = rows[f"mean{side}"]
    # A rounding error must not make a length negative.
    return [(mean - rows[f"low{side}"]).clip(lower=0), (rows[f"high{side}"] - mean).clip(lower=0)]


def _of(rows: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    return rows[(rows.suite == metric[0]) & (rows.metric == metric[1])].sort_values("strength")


def _items(rows: pd.DataFrame) -> str:
    fewest, most = rows.fewest.min(), rows.most.max()
    return f"n = {fewest:.0f} per seed" if fewest == most else f"n = {fewest:.0f} to {most:.0f} per seed"


def _settings(bands: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Each setting with its words, its look and its rows; a setting that a run does not have is left out of its words."""
    names = list(bands.columns[: bands.columns.get_loc("strength")])
    groups = list(bands.groupby(names, sort=False, dropna=False)) if names else [((), bands)]
    for look, (values, rows) in zip(styles(len(groups)), groups):
        told = [
            str(value) if name == "row" else f"{name.removesuffix('.name')}={value}"
            for name, value in zip(names, values)
            if str(value) not in ("nan", "none")
        ]
        fewest, most = rows.seeds.min(), rows.seeds.max()
        seeds = _counted(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
        yield f"{', '.join(told) or 'all runs'} ({seeds})", look, rows


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _over_seeds(seeds: Sequence[Curve]) -> list[tuple[int, float, float, float]]:
    """Step, mean, lowest and highest, for every step that all seeds have."""
    read = [dict(curve) for curve in seeds]
    steps = sorted(set.intersection(*(set(curve) for curve in read)))
    at = [(step, [curve[step] for curve in read]) for step in steps]
    return [(step, math.fsum(values) / len(values), min(values), max(values)) for step, values in at]
