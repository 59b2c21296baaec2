"""Tables of all runs below a folder: one line per number, with the settings in which the runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from alignlab.config import NO_INFLUENCE
from alignlab.errors import ConfigError, RunFolderError
from alignlab.records import ACROSS, NO_CLASS
from alignlab.registry import unknown
from alignlab.tracking.ledger import Ledger

MISSING = "none"
NOT_SETTINGS = {"fingerprint", *NO_INFLUENCE} - {"seed"}


def read_results(folder: Path, where: Mapping[str, Sequence[str]] | None = None) -> pd.DataFrame:
    """Every number of every finished run below a folder; columns: the settings that differ, the seed, then those of the report.

    `where`: only runs whose settings have one of these values, `none` for a setting that is null or absent. Raises
    RunFolderError if no finished run is left, and ConfigError for a setting that no run has.
    """
    runs = [Ledger(path.parent) for path in sorted(folder.glob("**/report.json"))]
    if not runs:
        raise RunFolderError(f"no finished run below {folder}; give the folder that `paths.runs` names.")
    every = [(_flat(run.read("config.json") or {}), run) for run in runs]
    asked = where or {}
    for name in asked:
        if not any(name in settings for settings, _ in every):
            raise ConfigError(unknown("setting", name, {key for settings, _ in every for key in settings}))
    chosen = [(s, run) for s, run in every if all(_text(s.get(name)) in asked[name] for name in asked)]
    if not chosen:
        raise RunFolderError(f"no finished run below {folder} has the settings asked for.")
    names = dict.fromkeys(name for settings, _ in chosen for name in settings)
    varying = [name for name in names if len({_text(settings.get(name)) for settings, _ in chosen}) > 1]
    lines = []
    for settings, run in chosen:
        values = {name: _text(settings.get(name)) for name in varying if name != "seed"}
        rows = (run.read("report.json") or {})["results"]
        lines += [{**values, "seed": settings.get("seed"), **row} for row in rows]
    return frame_of(lines)


def frame_of(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of reports as a frame; an interval that could not be estimated is nan."""
    frame = pd.DataFrame(lines)
    return frame.astype({end: float for end in ("low", "high") if end in frame})


def means(frame: pd.DataFrame) -> pd.DataFrame:
    """One line per setting and metric: the plain mean over seeds, how many there are, and the lowest and highest."""
    keys = [*distinguishing(frame), "strength", "control", "suite", "metric"]
    grouped = frame.groupby(keys, sort=False, dropna=False)["value"]
    made = grouped.agg(mean="mean", seeds="count", lowest="min", highest="max")
    return made.reset_index()


def bands(frame: pd.DataFrame) -> pd.DataFrame:
    """`means` with what a figure shows: `low` and `high` of a band, lowest and highest over seeds, or for a single seed its own
    95 % interval; and the number of items per seed, `fewest` and `most`."""
    keys = [*distinguishing(frame), "strength", "control", "suite", "metric"]
    measured = frame.groupby(keys, sort=False, dropna=False).agg(
        low=("low", "min"), high=("high", "max"), fewest=("n", "min"), most=("n", "max")
    )
    made = means(frame).merge(measured.reset_index(), on=keys)
    several = made["seeds"] > 1
    made["low"] = made["lowest"].where(several, made["low"])
    made["high"] = made["highest"].where(several, made["high"])
    return made


def differences(frame: pd.DataFrame, against: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Each setting minus the named one, paired by seed: the mean, the number of seeds, and Student's 95 % interval of the mean.

    `against`: settings with their values, which must name one run per seed. A run with classes is compared with one without by
    its first class. Raises ConfigError if `against` names no run, or several.
    """
    from scipy.stats import t

    settings = distinguishing(frame)
    keys = ["strength", "control", "suite", "metric"]
    chosen = frame
    for name, values in against.items():
        if name not in frame.columns:
            raise ConfigError(unknown("setting that differs", name, list(frame.columns[: frame.columns.get_loc("strength")])))
        chosen = chosen[chosen[name].astype(str).isin(values)]
    found = chosen[["seed", *settings]].drop_duplicates()
    if found.empty or not found["seed"].is_unique:
        raise ConfigError(f"--against names {len(found)} runs, and must name one per seed; give more, or other, settings.")
    named = chosen.set_index(["seed", *keys])["value"]
    runs = frame.groupby([*settings, "seed"], sort=False, dropna=False)
    comparable = pd.concat([_comparable(run, chosen) for _, run in runs])
    compared = comparable.join(named.rename("named"), on=["seed", *keys]).dropna(subset="named")
    compared["difference"] = compared["value"] - compared["named"]
    grouped = compared.groupby([*settings, *keys], sort=False, dropna=False)["difference"]
    made = grouped.agg(mean="mean", seeds="count", deviation="std").reset_index()
    half = made["deviation"] / made["seeds"] ** 0.5 * t.ppf(0.975, (made["seeds"] - 1).clip(lower=1))
    return made.drop(columns="deviation").assign(low=made["mean"] - half, high=made["mean"] + half)


def pivot(frame: pd.DataFrame, across: str, down: str, metric: str) -> pd.DataFrame:
    """One metric (suite/metric) at strength 1, mean over seeds: a column per value of `across`, a row per value of `down`.

    Raises ConfigError for settings in which the runs do not differ, and if runs in one cell differ in another setting.
    """
    settings = list(frame.columns[: frame.columns.get_loc("strength")])
    for name in (across, down):
        if name not in settings:
            raise ConfigError(unknown("setting that differs", name, settings))
    trained = over_strengths(frame)
    trained = trained[(trained["strength"] == 1) & (trained["suite"] + "/" + trained["metric"] == metric)]
    if trained.empty:
        raise ConfigError(
            f"no run has {metric} at strength 1; known: {', '.join(sorted(set(frame.suite + '/' + frame.metric)))}."
        )
    cells = trained.groupby([down, across])
    if (cells.size() > cells["seed"].nunique()).any():
        others = [name for name in distinguishing(trained) if name not in (across, down)]
        raise ConfigError(f"runs that share {across} and {down} differ in {', '.join(others)}; choose some with --where.")
    return in_order(in_order(cells["value"].mean().unstack(across)).T).T


def over_strengths(frame: pd.DataFrame) -> pd.DataFrame:
    """The numbers measured over strengths, without those of classes. Raises ConfigError if none is left."""
    with_classes = frame[frame["control"].isin((NO_CLASS, ACROSS))]
    strengths = frame.groupby("control")["strength"].transform("nunique")
    measured = frame if with_classes.empty else frame[strengths > 1]
    if measured.empty:
        raise ConfigError("these runs were measured under classes, not along a dial; repeat one with control.strengths=[...].")
    return measured


def distinguishing(frame: pd.DataFrame) -> list[str]:
    """The settings, in order, that distinguish the runs besides the seed, without those that follow from earlier ones (a
    learning rate from the tuner)."""
    settings = [name for name in frame.columns[: frame.columns.get_loc("strength")] if name != "seed"]
    # names first: numbers follow from them
    settings.sort(key=lambda name: not name.endswith(".name"))
    chosen: list[str] = []
    distinguished = 1
    for name in settings:
        groups = len(frame[[*chosen, name]].astype(str).drop_duplicates())
        if groups > distinguished:
            chosen, distinguished = [*chosen, name], groups
    return chosen


def _comparable(run: pd.DataFrame, named: pd.DataFrame) -> pd.DataFrame:
    """The numbers of a run under the controls of another: if only one of them has classes, its first class is compared."""
    if _has_classes(run) == _has_classes(named):
        return run
    own, theirs = run["control"].iloc[0], named["control"].iloc[0]
    return run[run["control"] == own].assign(control=theirs)


def _has_classes(run: pd.DataFrame) -> bool:
    return bool(run["control"].isin((NO_CLASS, ACROSS)).any())


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted as numbers if their names are numbers, else as text."""
    numbers = pd.to_numeric(table.index.to_series(), errors="coerce")
    order = numbers.sort_values().index if numbers.notna().all() else sorted(table.index)
    return table.loc[order]


def _text(value: object) -> str:
    """A setting as text; `none` if the run does not have it, or it is null."""
    return MISSING if value is None else str(value)


def _cell(value: Any) -> Any:
    """A list as text, so that it can be compared and grouped."""
    return " ".join(str(part) for part in value) if isinstance(value, list) else value


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if name in NOT_SETTINGS:
            continue
        flat.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: _cell(value)})
    return flat
