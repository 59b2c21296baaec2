"""Figures of a sweep, from the jobs that it has written down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from alignlab.errors import ConfigError, RunFolderError
from alignlab.plots.panels import refuse_other_formats
from alignlab.plots.run import losses_of
from alignlab.plots.sweep import Curve, Metric, draw_along, draw_frontier, draw_learning, draw_map
from alignlab.registry import unknown
from alignlab.tables.folders import along_a_dial, bands, crossed, in_order
from alignlab.tables.jobs import Sweep, frame_of, told
from alignlab.tracking.ledger import Ledger

KINDS = ("curves", "dial", "frontier", "map")


def draw(sweep: Sweep, kind: str, path: Path, metrics: Sequence[str] = (), over: Sequence[str] = ()) -> Path:
    """A figure of a sweep's finished jobs. `kind`: one of KINDS. `metrics`: suite/metric, none = the first two. `over`: two
    settings of a map, none = the two that there are.

    Raises ConfigError for metrics or settings that the sweep does not have, and RunFolderError where nothing is finished.
    """
    refuse_other_formats(path)
    if kind == "curves":
        return draw_learning(_losses(sweep), path)
    frame = frame_of(sweep)
    chosen = chosen_metrics(
        sorted(set(frame.suite + "/" + frame.metric)),
        metrics or list(dict.fromkeys(frame.suite + "/" + frame.metric))[:2],
        2 if kind == "frontier" else 1,
    )
    if kind == "map":
        across, down = over or _two_settings(sweep)
        note = f"mean over finished seeds; jobs: {told(sweep.jobs)}"
        return draw_map({metric: _every_cell(sweep, crossed(frame, across, down, metric)) for metric in chosen}, path, note)
    pairs = [split(metric) for metric in chosen]
    return (draw_along if kind == "dial" else draw_frontier)(bands(along_a_dial(frame)), path, pairs)


def chosen_metrics(known: Sequence[str], metrics: Sequence[str], least: int) -> list[str]:
    """The metrics asked for. Raises ConfigError where one is not known, or where there are too few."""
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
    """With the rows and columns of jobs that are not done, which are empty."""
    across, down = str(table.columns.name), str(table.index.name)
    whole = table.reindex(
        index=pd.Index(dict.fromkeys(sweep.value(seen, down) for seen in sweep.jobs), name=down),
        columns=pd.Index(dict.fromkeys(sweep.value(seen, across) for seen in sweep.jobs), name=across),
    )
    return in_order(in_order(whole).T).T


def _losses(sweep: Sweep) -> dict[str, dict[str, list[Curve]]]:
    """From stage and label to the losses of each seed, of finished jobs only: one that diverged would hide the others."""
    found: dict[str, dict[str, list[Curve]]] = {}
    for seen in sweep.jobs:
        if seen.state.name == "done":
            for stage, curve in losses_of(Ledger(seen.folder)).items():
                found.setdefault(stage, {}).setdefault(sweep.label(seen), []).append(curve)
    if not found:
        raise RunFolderError(f"no finished job of {sweep.name} has trained anything; {told(sweep.jobs)}.")
    return found
