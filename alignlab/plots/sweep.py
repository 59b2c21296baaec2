"""Figures of many runs: metrics over strength, two metrics against each other, over two settings, and losses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from alignlab.errors import ConfigError, RunFolderError
from alignlab.evaluation import is_share
from alignlab.plots.run import (
    FAINT,
    HEIGHT,
    SMALL,
    WIDTH,
    end_at_one,
    legend,
    losses_of,
    panels,
    refuse_other_formats,
    saved,
    smoothed,
    smoothed_over,
    styles,
    whole_steps,
)
from alignlab.registry import unknown
from alignlab.tables.folders import bands, in_order, over_strengths, pivot
from alignlab.tables.sweep import Sweep, count_states, results_frame
from alignlab.tracking.ledger import Ledger

Metric = tuple[str, str]
"""A suite and its metric."""
Curve = Sequence[tuple[int, float]]
"""Pairs of optimiser step and value."""
POINTS = "each point is a strength, named beside it; the large one is 1, as trained"
BAND = "mean over seeds; band: lowest to highest, for a single seed its 95 % interval"
BESIDE = ((4, 4), (-18, 4), (4, -9), (-18, -9))
"""Points from a point of a frontier to its strength: another corner for each of four lines."""
SMALL_CELL = 8
"""Font size of the numbers in a heat map, in points."""
LETTER = 0.085
"""Width of a letter of an axis label, in inches."""
AXIS = "strength (0: untouched, 1: trained)"


def draw(sweep: Sweep, kind: str, path: Path, metrics: Sequence[str] = (), over: Sequence[str] = ()) -> Path:
    """A figure of a sweep's finished jobs. `kind`: curves | dial | frontier | map. `metrics`: suite/metric, none = the first
    two. `over`: two settings of a map, none = the two in which the jobs differ.

    Raises ConfigError for metrics or settings that the sweep does not have, and RunFolderError if no job is finished.
    """
    refuse_other_formats(path)
    if kind == "curves":
        return draw_learning(_losses(sweep), path)
    frame = results_frame(sweep)
    chosen = chosen_metrics(
        sorted(set(frame.suite + "/" + frame.metric)),
        metrics or list(dict.fromkeys(frame.suite + "/" + frame.metric))[:2],
        2 if kind == "frontier" else 1,
    )
    if kind == "map":
        across, down = over or _two_settings(sweep)
        note = f"mean over finished seeds; jobs: {count_states(sweep.jobs)}"
        return draw_map({metric: _every_cell(sweep, pivot(frame, across, down, metric)) for metric in chosen}, path, note)
    pairs = [split(metric) for metric in chosen]
    return (draw_along if kind == "dial" else draw_frontier)(bands(over_strengths(frame)), path, pairs)


def chosen_metrics(known: Sequence[str], metrics: Sequence[str], least: int) -> list[str]:
    """The metrics asked for. Raises ConfigError if one is not known, or if there are fewer than `least`."""
    for metric in metrics:
        if metric not in known:
            raise ConfigError(f"--metrics: {unknown('metric', metric, known)}")
    if len(metrics) < least:
        raise ConfigError(f"--metrics {' '.join(metrics)}: give {least} or more of {', '.join(known)}.")
    return list(metrics)


def split(metric: str) -> Metric:
    """suite/metric as a pair."""
    suite, _, name = metric.partition("/")
    return suite, name


def _two_settings(sweep: Sweep) -> Sequence[str]:
    names = sweep.names
    if len(names) != 2:
        raise ConfigError(
            f"{sweep.name} differs in {', '.join(names) or 'nothing'}; name two of its settings: --map ACROSS DOWN."
        )
    return names


def _every_cell(sweep: Sweep, table: pd.DataFrame) -> pd.DataFrame:
    """The table with empty rows and columns for jobs that are not done."""
    across, down = str(table.columns.name), str(table.index.name)
    whole = table.reindex(
        index=pd.Index(dict.fromkeys(sweep.value(job, down) for job in sweep.jobs), name=down),
        columns=pd.Index(dict.fromkeys(sweep.value(job, across) for job in sweep.jobs), name=across),
    )
    return in_order(in_order(whole).T).T


def _losses(sweep: Sweep) -> dict[str, dict[str, list[Curve]]]:
    """From stage and label to the losses of each seed, of finished jobs only: one that diverged would set the axis."""
    found: dict[str, dict[str, list[Curve]]] = {}
    for job in sweep.jobs:
        if job.state.name == "done":
            for stage, curve in losses_of(Ledger(job.folder)).items():
                found.setdefault(stage, {}).setdefault(sweep.label(job), []).append(curve)
    if not found:
        raise RunFolderError(f"no finished job of {sweep.name} has trained anything; {count_states(sweep.jobs)}.")
    return found


def draw_along(frame: pd.DataFrame, path: Path, metrics: Sequence[Metric]) -> Path:
    """A panel for each metric along the strengths, a line per setting (columns before `strength`), with a band."""
    figure, drawn = panels(len(metrics))
    _along(frame, drawn, metrics)
    legend(figure, drawn, BAND)
    return saved(figure, path)


def draw_frontier(frame: pd.DataFrame, path: Path, metrics: Sequence[Metric]) -> Path:
    """The first metric against the second, a line per setting over its strengths, with both intervals."""
    figure, drawn = panels(1, WIDTH * 1.4, HEIGHT * 1.2)
    _frontier(frame, drawn[0], metrics)
    legend(figure, drawn, f"{POINTS}\n{BAND.replace('band', 'bars')}")
    return saved(figure, path)


def draw_sweep(frame: pd.DataFrame, path: Path, metrics: Sequence[Metric]) -> Path:
    """Both: a panel for each metric along the strengths, and one of the first two against each other."""
    figure, drawn = panels(len(metrics) + 1)
    _along(frame, drawn[:-1], metrics)
    _frontier(frame, drawn[-1], metrics)
    legend(figure, drawn, f"{BAND}\nright: {POINTS}")
    return saved(figure, path)


def draw_learning(curves: Mapping[str, Mapping[str, Sequence[Curve]]], path: Path) -> Path:
    """From stage and setting to the loss of each seed: a panel per stage, the mean over seeds with a band."""
    figure, drawn = panels(max(1, len(curves)))
    labels = list(dict.fromkeys(label for stage in curves.values() for label in stage))
    looks = dict(zip(labels, styles(len(labels))))
    most = 1
    for panel, (stage, settings) in zip(drawn, curves.items()):
        whole_steps(panel)
        lines = []
        for label, seeds in settings.items():
            steps, means, lows, highs = zip(*_over_seeds(seeds), strict=True)
            over = smoothed_over(len(steps))
            most = max(most, over)
            lines.append((label, len(seeds), steps, means, [smoothed(each, over) for each in (means, lows, highs)]))
        widths = line_widths([line[-1][0] for line in lines])
        for (label, count, steps, raw, (mean, low, high)), width in zip(lines, widths, strict=True):
            look = {**looks[label], "marker": None}
            if list(raw) != list(mean):
                panel.plot(steps, raw, **{**look, "linestyle": "-"}, linewidth=0.7, alpha=FAINT)
            panel.plot(steps, mean, label=f"{label} ({_counted(count, 'seed')})", **look, **width)
            if count > 1:
                panel.fill_between(steps, low, high, alpha=0.15, linewidth=0, color=look["color"])
        panel.set(title=f"stage {stage}", xlabel="optimiser step", ylabel="training loss")
    note = f"running mean over {most} steps that were logged, the faint line is not smoothed; " if most > 1 else ""
    legend(figure, drawn, f"{note}mean over seeds; band: lowest to highest")
    return saved(figure, path)


def line_widths(curves: Sequence[ArrayLike]) -> list[dict[str, float]]:
    """The look of each line of a panel: one that lies on others is thinner than they are, so that each is seen."""
    seen: list[ArrayLike] = []
    looks = []
    for curve in curves:
        under = sum(np.shape(curve) == np.shape(other) and np.allclose(curve, other, equal_nan=True) for other in seen)
        seen.append(curve)
        looks.append({"linewidth": 1.2, "zorder": 2.0 + 0.1 * under, "alpha": 1.0})
        if under:
            for place, other in enumerate(seen[:-1]):
                if np.shape(curve) == np.shape(other) and np.allclose(curve, other, equal_nan=True):
                    looks[place] = {**looks[place], "linewidth": looks[place]["linewidth"] + 2.4, "alpha": 0.6}
    return looks


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
        inches = figure.get_size_inches()[0] / len(tables) / len(table.columns)
        slant = {"rotation": 30, "ha": "right"} if max(len(str(name)) for name in table.columns) * LETTER > 0.7 * inches else {}
        panel.set_xticks(range(len(table.columns)), table.columns, **slant)
        panel.set_yticks(range(len(table.index)), table.index)
        panel.set(title=f"{metric} at strength 1", xlabel=table.columns.name, ylabel=table.index.name)
        low, high = image.get_clim()
        for row, values in enumerate(table.to_numpy()):
            for column, value in enumerate(values):
                missing = math.isnan(value)
                dark = not missing and value < (low + high) / 2
                text = "no run" if missing else f"{value:.3f}"
                panel.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=SMALL_CELL)
    figure.supxlabel(note, fontsize=SMALL)
    return saved(figure, path)


def _along(frame: pd.DataFrame, drawn: Sequence[Any], metrics: Sequence[Metric]) -> None:
    for panel, metric in zip(drawn, metrics, strict=True):
        curves = [(label, look, _of(rows, metric)) for label, look, rows in _settings(frame)]
        curves = [each for each in curves if not each[-1].empty]
        widths = line_widths([curve[["strength", "mean"]].to_numpy() for *_, curve in curves])
        for (label, look, curve), width in zip(curves, widths, strict=True):
            panel.plot(curve.strength, curve["mean"], markersize=4, label=label, clip_on=False, **look, **width)
            panel.fill_between(curve.strength, curve.low, curve.high, alpha=0.15, linewidth=0, color=look["color"])
        panel.set(title="/".join(metric), xlabel=AXIS, ylabel=f"{metric[1]} ({_items(_of(frame, metric))})")
        end_at_one(panel, is_share(*metric))


def _frontier(frame: pd.DataFrame, panel: Any, metrics: Sequence[Metric]) -> None:
    for number, (label, look, rows) in enumerate(_settings(frame)):
        both = _of(rows, metrics[0]).merge(_of(rows, metrics[1]), on="strength", suffixes=("", "_across"))
        if both.empty:
            continue
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
        for strength, across, up in zip(both["strength"], both["mean_across"], both["mean"], strict=True):
            place = {
                "xytext": BESIDE[number % len(BESIDE)],
                "textcoords": "offset points",
                "fontsize": SMALL - 1,
                "color": look["color"],
            }
            panel.annotate(f"{strength:g}", (across, up), **place).set_in_layout(False)
    across, up = metrics[1], metrics[0]
    panel.set(
        title=f"{'/'.join(up)} against {'/'.join(across)}", xlabel=across[1], ylabel=f"{up[1]} ({_items(_of(frame, up))})"
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


def _settings(frame: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Each setting with its label, its line style and its numbers; the label leaves out settings that the run does not have."""
    names = list(frame.columns[: frame.columns.get_loc("strength")])
    groups = list(frame.groupby(names, sort=False, dropna=False)) if names else [((), frame)]
    for look, (values, rows) in zip(styles(len(groups)), groups):
        parts = [
            str(value) if name == "row" else f"{name.removesuffix('.name')}={value}"
            for name, value in zip(names, values)
            if str(value) not in ("nan", "none")
        ]
        fewest, most = rows.seeds.min(), rows.seeds.max()
        seeds = _counted(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
        yield f"{', '.join(parts) or 'all runs'} ({seeds})", look, rows


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _over_seeds(seeds: Sequence[Curve]) -> list[tuple[int, float, float, float]]:
    """Step, mean, lowest and highest, for every step that all seeds have."""
    read = [dict(curve) for curve in seeds]
    steps = sorted(set.intersection(*(set(curve) for curve in read)))
    at = [(step, [curve[step] for curve in read]) for step in steps]
    return [(step, math.fsum(values) / len(values), min(values), max(values)) for step, values in at]
