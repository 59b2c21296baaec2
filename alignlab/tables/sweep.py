"""A sweep read from disk: its jobs with their results, its table, and every number as CSV with its origin.

A table has one row for each experiment row, swept values, and strength or class; a cell is the same metric of all its seeds.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from alignlab.command_line import SMOKE, program
from alignlab.errors import ConfigError, RunFolderError
from alignlab.evaluation.report import ROWS
from alignlab.evaluation.statistics import Items, over_seeds, paired
from alignlab.records import ACROSS, NO_CLASS
from alignlab.registry import unknown
from alignlab.tables.folders import MISSING, frame_of
from alignlab.tracking.ledger import Ledger, State
from alignlab.tracking.sweeps import Job, SweepLedger, find_sweep

NOT_MEASURED = "not measured"
PACKAGES = ("alignlab", "torch", "transformers", "peft")
PATH = "PATH"
"""Replaces each path of a machine."""
NONE, UNKNOWN = "none yet", "not known"


Key = tuple[float, str, str, str]
"""Strength, control, suite and metric of a number."""


@dataclass(frozen=True)
class JobResult:
    """A job with its state and files. `spec`: its entry in the sweep's ledger. `extra`: the table's config does not name its
    seed. `report`: report.json, empty unless the job is done. `config`, `environment`: config.json and env.json, or empty.
    `other_version`: another version of the code or of a library made it than the latest of its sweep."""

    spec: Job
    state: State
    extra: bool
    folder: Path
    report: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    other_version: bool = False

    @property
    def results(self) -> Sequence[Mapping[str, Any]]:
        """The rows of its report; empty for a run without evaluation."""
        return self.report.get("results", ())

    @cached_property
    def items(self) -> Mapping[Key, tuple[str, Items]]:
        """From strength, control, suite and metric to the scale of the metric and the value of each item; empty for a run that
        kept none."""
        kept = Ledger(self.folder).found(ROWS).get("rows", {}) if self.results else {}
        try:
            return {
                (row["strength"], row["control"], row["suite"], row["metric"]): (row["scale"], row["items"])
                for rows in kept.values()
                for row in rows
                if row["items"]
            }
        except (AttributeError, KeyError, TypeError):
            return {}  # no evaluation's file; the difference is then taken over seeds

    @property
    def model(self) -> str:
        """The short name of its model: as swept, or from its config; "" where neither is known."""
        return self.spec.settings.get("model") or str(self.config.get("model", {}).get("name", ""))


@dataclass(frozen=True)
class Sweep:
    """A sweep and its jobs, in the order in which they were declared."""

    ledger: SweepLedger
    jobs: tuple[JobResult, ...]

    @property
    def name(self) -> str:
        """Its name, such as clm/toy/table1."""
        return self.ledger.name

    @property
    def trial(self) -> bool:
        """Whether any of its jobs was cut by scale=smoke."""
        return any(SMOKE in (*self.ledger.overrides(), *job.spec.overrides) for job in self.jobs)

    @property
    def settings(self) -> list[str]:
        """The swept keys in which its jobs differ, without rows and seeds."""
        names = dict.fromkeys(name for job in self.jobs for name in job.spec.settings)
        return [name for name in names if len({job.spec.settings.get(name) for job in self.jobs}) > 1]

    @property
    def names(self) -> list[str]:
        """`row`, if the jobs differ in it, and the settings."""
        return [*(["row"] if len({job.spec.row for job in self.jobs}) > 1 else []), *self.settings]

    def value(self, job: JobResult, name: str) -> str:
        """A job's value of a swept key, or its `row`; "none" if it does not have that key."""
        return job.spec.row if name == "row" else job.spec.settings.get(name, MISSING)

    def label(self, job: JobResult) -> str:
        """A job without its seed: its row, and the settings in which the jobs differ."""
        values = ", ".join(f"{name}={job.spec.settings[name]}" for name in self.settings if name in job.spec.settings)
        return " ".join(part for part in (job.spec.row, values) if part) or self.name


def read_sweep(runs: Path, name: str) -> Sweep:
    """The sweep of this name. Raises RunFolderError if there is none, and if it has no job."""
    ledger = find_sweep(runs, name)
    # one job per row, settings and seed: of two that were declared, the later one counts
    latest = {(job.row, tuple(sorted(job.settings.items())), job.seed): job for job in ledger.jobs()}
    if not latest:
        raise RunFolderError(f"sweep {name} has no jobs; start it again with {program()}.")
    return Sweep(ledger, _told_apart([_job_result(ledger, job) for job in latest.values()]))


def _told_apart(jobs: Sequence[JobResult]) -> tuple[JobResult, ...]:
    """The jobs, with those marked that another version of the code or of a library has done than the latest of them."""
    done = [job for job in jobs if job.state.name == "done"]
    latest = max(done, key=lambda job: str(job.state.details.get("time")), default=None)
    code = latest.environment.get("code") if latest else None
    return tuple(replace(job, other_version=job in done and job.environment.get("code") != code) for job in jobs)


def results_frame(sweep: Sweep) -> pd.DataFrame:
    """Every number of every finished job, with the columns of `folders.read_results`; `row` is a setting if a sweep has rows.

    Raises RunFolderError if no job has a number yet.
    """
    numbers = [
        {**{name: sweep.value(job, name) for name in sweep.names}, "seed": job.spec.seed, **result}
        for job in sweep.jobs
        for result in job.results
    ]
    if not numbers:
        raise RunFolderError(f"no job of {sweep.name} has a number yet; {count_states(sweep.jobs)}.")
    return frame_of(numbers)


def count_states(jobs: Sequence[JobResult]) -> str:
    """How many jobs are in each state, as text: "2 done, 1 failed"."""
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.state.name] = counts.get(job.state.name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _job_result(sweep: SweepLedger, spec: Job) -> JobResult:
    folder, state = sweep.run_folder(spec), sweep.state(spec)
    ledger = Ledger(folder)
    report = ledger.found("report.json") if state.name == "done" else {}
    extra = sweep.is_extra(spec)
    return JobResult(spec, state, extra, folder, report, ledger.found("config.json"), ledger.found("env.json"))


@dataclass(frozen=True)
class Selection:
    """What a table is to show. `metrics`: suite/metric, none = all. `strengths`: None = all. `baseline`: a row, "" = first."""

    metrics: tuple[str, ...] = ()
    strengths: tuple[float, ...] | None = (1.0,)
    baseline: str = ""


@dataclass(frozen=True)
class TableRow:
    """One row of a table. `row`: the experiment's row. `strength`, `control`: None and "" if no job of it was measured.
    `classes`: whether it was measured under classes. `first`: whether it is compared with rows of the other kind: the first
    class of a run with classes, every strength of any other run."""

    label: str
    row: str
    settings: Mapping[str, str]
    jobs: tuple[JobResult, ...]
    strength: float | None = None
    control: str = ""
    classes: bool = False
    first: bool = True

    @property
    def key(self) -> tuple[str, str]:
        """Unique in its table."""
        return self.label, self.point

    @property
    def point(self) -> str:
        """Strength or class, as text."""
        if self.strength is None:
            return ""
        if not self.classes:
            return f"{self.strength:g}"
        return self.control if self.strength == 1 else f"{self.control} {self.strength:g}"

    def measured(self, metric: str) -> dict[int, Mapping[str, Any]]:
        """From seed to the row of its report, for the seeds that have this metric."""
        suite, _, name = metric.partition("/")
        return {
            job.spec.seed: result
            for job in self.jobs
            for result in job.results
            if (result["strength"], result["control"]) == (self.strength, self.control)
            and (result["suite"], result["metric"]) == (suite, name)
        }

    def items(self, metric: str) -> dict[int, tuple[str, Items]]:
        """From seed to the scale of a metric and the values of its items, for the seeds that kept them."""
        suite, _, name = metric.partition("/")
        key = (self.strength or 0.0, self.control, suite, name)
        return {job.spec.seed: job.items[key] for job in self.jobs if key in job.items}

    def mark(self, metric: str) -> str:
        """Why seeds are missing from a cell: "2/3, 1 failed"; "" if none is missing, the state alone if all are. Seeds that the
        table does not name are counted, too: "1 extra seed"."""
        found = self.measured(metric)
        lost: dict[str, int] = {}
        for job in self.jobs:
            if job.spec.seed not in found:
                why = NOT_MEASURED if job.state.name == "done" else job.state.name
                lost[why] = lost.get(why, 0) + 1
        if not found and len(lost) == 1:
            return next(iter(lost))
        extra = sum(job.extra and job.spec.seed in found for job in self.jobs)
        other = sum(job.other_version and job.spec.seed in found for job in self.jobs)
        counts = [f"{len(found)}/{len(self.jobs)}", *(f"{count} {why}" for why, count in lost.items())] if lost else []
        if extra:
            counts.append(f"{extra} extra seed{'s' if extra > 1 else ''}")
        if other:
            counts.append(f"{other} by another version")
        return ", ".join(counts)


@dataclass(frozen=True)
class Aggregate:
    """Mean, sample standard deviation (None for one seed), lowest and highest over seeds. `items`: the different numbers of
    items per seed."""

    mean: float
    deviation: float | None
    lowest: float
    highest: float
    seeds: int
    items: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """The results of a sweep. `rows`: those asked for, `all_rows`: those at all strengths. `baseline`: the row, or the label
    if a sweep has no rows, that every row is compared with."""

    sweep: Sweep
    rows: tuple[TableRow, ...]
    all_rows: tuple[TableRow, ...]
    metrics: tuple[str, ...]
    baseline: str


def aggregate(row: TableRow, metric: str) -> Aggregate | None:
    """The numbers of a cell, None if no seed has the metric."""
    found = row.measured(metric)
    values = [float(result["value"]) for result in found.values()]
    if not values:
        return None
    items = tuple(sorted({int(result["n"]) for result in found.values()}))
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Aggregate(statistics.fmean(values), deviation, min(values), max(values), len(values), items)


def own_interval(row: TableRow, metric: str) -> tuple[float, float]:
    """The 95 % interval of a cell's mean: Student's over seeds, of one seed the run's own; nan where there is none."""
    found = list(row.measured(metric).values())
    if len(found) == 1:
        low, high = (found[0].get(end) for end in ("low", "high"))
        return (math.nan, math.nan) if low is None or high is None else (float(low), float(high))
    over = over_seeds(metric, [float(result["value"]) for result in found])
    return over.low, over.high


@dataclass(frozen=True)
class Difference:
    """A row minus the baseline's: the mean over seeds, and its 95 % interval, whose ends are nan where it cannot be estimated.
    `seeds`: pairs of runs of one seed. `items`: those that the interval is over; None where it is over seeds alone."""

    value: float
    low: float
    high: float
    seeds: int
    items: int | None


def difference(table: Table, row: TableRow, metric: str) -> Difference | None:
    """The row minus the baseline's, paired by seed and by item (`statistics.paired`); over seeds alone, by Student's interval,
    where a run kept no items or the metric is no mean of items.

    None for the baseline itself, if no seed has both numbers, and if the baseline has no row at the same settings and strength
    or class.
    """
    base = _baseline_of(table, row)
    if base is None:
        return None
    own, other = row.measured(metric), base.measured(metric)
    seeds = [seed for seed in own if seed in other]
    if not seeds:
        return None
    items, of_base = row.items(metric), base.items(metric)
    if all(seed in items and seed in of_base for seed in seeds):
        scale = items[seeds[0]][0]
        made = paired(metric, [items[seed][1] for seed in seeds], [of_base[seed][1] for seed in seeds], scale)
        if made is not None:
            return Difference(made.value, made.low, made.high, len(seeds), made.n)
    over = over_seeds(metric, [float(own[seed]["value"]) - float(other[seed]["value"]) for seed in seeds])
    return Difference(over.value, over.low, over.high, len(seeds), None)


def table_of(sweep: Sweep, asked: Selection) -> Table:
    """The table of a sweep. Raises ConfigError for a metric, strength or baseline that it does not have."""
    rows = tuple(_rows(sweep, asked.strengths))
    measured = [result for job in sweep.jobs for result in job.results]
    if measured and not any(row.strength is not None for row in rows):
        strengths = ", ".join(f"{strength:g}" for strength in sorted({result["strength"] for result in measured}))
        wanted = " ".join(f"{strength:g}" for strength in asked.strengths or ())
        raise ConfigError(f"no job of {sweep.name} was measured at --strength {wanted}; known: {strengths}, or all.")
    known = dict.fromkeys(f"{result['suite']}/{result['metric']}" for result in measured)
    for metric in asked.metrics:
        if measured and metric not in known:
            raise ConfigError(unknown("metric", metric, known))
    labels = list(dict.fromkeys(_compared(row) for row in rows))
    if asked.baseline and asked.baseline not in labels:
        raise ConfigError(unknown("baseline", asked.baseline, labels))
    return Table(sweep, rows, tuple(_rows(sweep, None)), asked.metrics or tuple(known), asked.baseline or labels[0])


def _rows(sweep: Sweep, strengths: Sequence[float] | None) -> Iterable[TableRow]:
    """The rows at these strengths, None = all; one without strength for jobs that have no number there."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[JobResult]] = {}
    for job in sweep.jobs:
        groups.setdefault((job.spec.row, tuple(sorted(job.spec.settings.items()))), []).append(job)
    for (name, settings), jobs in groups.items():
        row = TableRow(sweep.label(jobs[0]), name, dict(settings), tuple(jobs))
        points = list(dict.fromkeys((result["strength"], result["control"]) for job in jobs for result in job.results))
        classes = any(control in (NO_CLASS, ACROSS) for _, control in points)
        asked = [point for point in points if strengths is None or point[0] in strengths]
        if not asked:
            yield row
        for strength, control in asked:
            first = not classes or (strength, control) == points[0]
            yield TableRow(row.label, name, row.settings, row.jobs, strength, control, classes, first)


def _compared(row: TableRow) -> str:
    """The name by which a row can be the baseline: the experiment's row, or the label in a sweep without rows."""
    return row.row or row.label


def _baseline_of(table: Table, row: TableRow) -> TableRow | None:
    """The baseline's row at the same settings and the same strength or class; the first class is compared with strength 1."""
    if _compared(row) == table.baseline or row.strength is None:
        return None
    for other in table.rows:
        same_settings = not row.row or other.settings == row.settings
        if _compared(other) == table.baseline and same_settings and _comparable(row, other):
            return other
    return None


def _comparable(row: TableRow, other: TableRow) -> bool:
    if row.strength != other.strength:
        return False
    if row.classes and other.classes:
        return row.control == other.control
    return row.first and other.first


def results_csv(sweep: Sweep) -> str:
    """CSV after `# ` lines with its origin: every number of every seed with its n and its own 95 % interval; a job without
    numbers has one line with its state."""
    head = "".join(f"# {name}: {value}\n" for name, value in origin(sweep).items())
    frame = pd.DataFrame([row for job in sweep.jobs for row in _csv_rows(sweep, job)])
    if "n" in frame:
        frame["n"] = frame["n"].astype("Int64")
    return head + frame.to_csv(index=False)


def origin(sweep: Sweep) -> dict[str, str]:
    """Where the numbers of a sweep came from: command, times, commits, versions and machines, as text."""
    done = [job for job in sweep.jobs if job.state.name == "done"]
    environments = [job.environment for job in done if job.environment]
    times = sorted(str(job.state.details["time"]) for job in done if "time" in job.state.details)
    return {
        "sweep": sweep.name,
        "command": without_paths("; ".join(sweep.ledger.commands())),
        "jobs": count_states(sweep.jobs),
        "finished": NONE if not times else times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}",
        "commit": _each(_commit(environment) for environment in environments),
        **{name: _each(_version(environment, name) for environment in environments) for name in PACKAGES},
        "python": _each(str(environment.get("python", UNKNOWN)) for environment in environments),
        "machine": _each(_machine(environment) for environment in environments),
    }


def without_paths(text: str) -> str:
    """The text with every path of a machine replaced by PATH: absolute ones, and those that begin with ~ or .. ."""
    return re.sub(r"(?<![\w./~<-])(?:~|\.\.)?/[^\s,;:'\"()\[\]{}]*|(?<![\w./])\.\.(?=[\s,]|$)", PATH, text)


def _csv_rows(sweep: Sweep, job: JobResult) -> Iterable[dict[str, Any]]:
    spec = job.spec
    settings = {name: spec.settings.get(name, "") for name in sweep.settings}
    known = {"row": spec.row, **settings, "seed": spec.seed, "fingerprint": spec.fingerprint, "state": job.state.name}
    if not job.results:
        yield known
    for result in job.results:
        yield {**known, **result}


def _each(found: Iterable[str]) -> str:
    """The different values, in the order of the jobs."""
    return "; ".join(dict.fromkeys(found)) or NONE


def _commit(environment: Mapping[str, Any]) -> str:
    commit, changed = environment.get("commit"), environment.get("changed_files")
    if not commit:
        return UNKNOWN
    return f"{commit}, {'clean' if not changed else f'{changed} files changed since'}"


def _version(environment: Mapping[str, Any], name: str) -> str:
    return str(environment.get("packages", {}).get(name) or UNKNOWN)


def _machine(environment: Mapping[str, Any]) -> str:
    gpus = environment.get("gpus") or ()
    kind = f"{len(gpus)} GPU ({', '.join(dict.fromkeys(gpus))})" if gpus else "CPU"
    return f"{kind}, {environment.get('system', UNKNOWN)}"
