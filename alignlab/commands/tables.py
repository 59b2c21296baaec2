"""`python -m alignlab table`, `plot` and `report`: the numbers of a sweep, or of a folder of runs, as text, figure or page."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError, RunFolderError
from alignlab.files import replaced_alone
from alignlab.tables import experiments_with

if TYPE_CHECKING:
    from alignlab.tables.sweep import Selection

RUNS = "runs"
"""The folder that `table` reads if nothing is named."""
FOLDER_ONLY, SWEEP_ONLY = ("means", "against", "where"), ("metrics", "strength", "baseline", "form", "to", "results")
SUFFIXES = {".md": "md", ".tex": "latex", ".csv": "csv"}
FOLDER_METRICS = ("toy/reward", "toy/capability")
"""Metrics of a figure of a folder if none are given."""


def add_table(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser("table", help="the table of a sweep, or every number of the runs below a folder, as CSV")
    parser.add_argument("name", nargs="?", default=RUNS, help="a sweep, such as red/toy/table1, or a folder of runs")
    of_folder = parser.add_argument_group("of a folder")
    shape = of_folder.add_mutually_exclusive_group()
    shape.add_argument("--means", action="store_true", help="one line per setting: mean over seeds, lowest and highest")
    shape.add_argument(
        "--against", nargs="+", default=[], metavar="KEY=VALUE", help="each setting minus the one named here, paired by seed"
    )
    _add_where(of_folder)
    of_sweep = parser.add_argument_group("of a sweep")
    _add_sweep(of_sweep)
    of_sweep.add_argument("--form", choices=["md", "latex", "csv"], help="md to a terminal; to a file, what its suffix says")
    of_sweep.add_argument("--to", type=Path, help="the file to write: .md, .tex or .csv")
    of_sweep.add_argument("--results", type=Path, metavar="FILE.csv", help="every number of every seed, and its origin")
    parser.set_defaults(run=_table)


def _table(given: argparse.Namespace) -> None:
    """To standard output, or to a file."""
    if given.name == RUNS or Path(given.name).is_dir():
        _refuse(given, SWEEP_ONLY, f"{given.name} is a folder; give the name of a sweep")
        _table_of_folder(given)
    else:
        _refuse(given, FOLDER_ONLY, f"there is no folder {given.name}, and a sweep does not take it; give a folder of runs")
        _table_of_sweep(given)


def _table_of_folder(given: argparse.Namespace) -> None:
    from alignlab.tables.folders import differences, means, read_results

    against = _settings("--against", given.against)
    frame = read_results(Path(given.name), _settings("--where", given.where))
    table = differences(frame, against) if against else means(frame) if given.means else frame
    print(table.to_csv(index=False), end="")


def _table_of_sweep(given: argparse.Namespace) -> None:
    from alignlab.tables.render import latex, long_csv, markdown, published_for, sections_of
    from alignlab.tables.sweep import read_sweep, results_csv, table_of

    sweep = read_sweep(given.runs, given.name)
    if given.results:
        _refuse(given, ("metrics", "strength", "baseline", "form", "to"), "--results writes every number, as CSV")
        _write(given.results, results_csv(sweep))
        return
    table = table_of(sweep, _selection(given))
    experiments = given.experiments or experiments_with(given.name)
    published = published_for(given.name, experiments, trial=table.sweep.trial)
    form = _form_of(given.form, given.to)
    if form == "csv":
        text = long_csv(table, published)
    else:
        text = {"md": markdown, "latex": latex}[form](given.name, sections_of(table, published, experiments))
    if given.to:
        _write(given.to, text)
    else:
        print(text, end="")


def _form_of(form: str | None, to: Path | None) -> str:
    """md, latex or csv: as given, or by the suffix of the file. Raises ConfigError for any other suffix."""
    if form or to is None:
        return form or "md"
    if to.suffix not in SUFFIXES:
        raise ConfigError(f"--to {to} does not say its form; let it end in {', '.join(SUFFIXES)}, or give --form.")
    return SUFFIXES[to.suffix]


def add_plot(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser("plot", help="a figure of a sweep, or of the finished runs below a folder")
    parser.add_argument("name", help="a sweep, such as red/toy/table1, or a folder of runs")
    parser.add_argument("--to", required=True, type=Path, help="the picture to write: .png, .svg or .pdf")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="SUITE/METRIC", help="default: the first two")
    parser.add_argument("--map", nargs=2, metavar=("ACROSS", "DOWN"), help="a heat map over two settings, at strength 1")
    _add_where(parser.add_argument_group("of a folder"))
    of_sweep = parser.add_argument_group("of a sweep")
    of_sweep.add_argument("--kind", choices=["curves", "dial", "frontier", "map"], help="what to draw; default: dial")
    of_sweep.add_argument(
        "--runs", default=Path("runs"), type=Path, help="the folder of runs that has the sweep; default: runs"
    )
    parser.set_defaults(run=_plot)


def _plot(given: argparse.Namespace) -> None:
    """Draws one figure."""
    if Path(given.name).is_dir():
        _refuse(given, ("kind",), f"{given.name} is a folder; give the name of a sweep")
        print(f"drawn: {_plot_of_folder(given)}")
    else:
        _refuse(given, ("where",), f"there is no folder {given.name}, and a sweep does not take it; give a folder of runs")
        print(f"drawn: {_plot_of_sweep(given)}")


def _plot_of_folder(given: argparse.Namespace) -> Path:
    from alignlab.plots.sweep import chosen_metrics, draw_map, draw_sweep, split
    from alignlab.tables.folders import bands, over_strengths, pivot, read_results

    frame = read_results(Path(given.name), _settings("--where", given.where))
    metrics = given.metrics or FOLDER_METRICS
    if given.map:
        across, down = given.map
        return draw_map({metric: pivot(frame, across, down, metric) for metric in metrics}, given.to)
    frame = over_strengths(bands(frame))
    known = sorted(set(frame.suite + "/" + frame.metric))
    return draw_sweep(frame, given.to, [split(metric) for metric in chosen_metrics(known, metrics, 2)])


def _plot_of_sweep(given: argparse.Namespace) -> Path:
    from alignlab.plots.sweep import draw
    from alignlab.tables.sweep import count_states, read_sweep

    kind = given.kind or ("map" if given.map else "dial")
    sweep = read_sweep(given.runs, given.name)
    drawn = draw(sweep, kind, given.to, given.metrics, given.map or ())
    if any(job.state.name != "done" for job in sweep.jobs):
        print(f"not every job of {sweep.name} is done, and only numbers that are here are drawn: {count_states(sweep.jobs)}.")
    return drawn


def add_report(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser("report", help="a sweep as one HTML file: jobs, numbers, figures and where they came from")
    parser.add_argument("name", help="a sweep, such as red/toy/table1")
    parser.add_argument("--to", required=True, type=Path, help="the file to write, e.g. report.html")
    _add_sweep(parser)
    parser.set_defaults(run=_report)


def _report(given: argparse.Namespace) -> None:
    """Writes the page."""
    from alignlab.plots.report import page_of
    from alignlab.tables.render import published_for
    from alignlab.tables.sweep import read_sweep, table_of

    table = table_of(read_sweep(given.runs, given.name), _selection(given))
    experiments = given.experiments or experiments_with(given.name)
    _write(given.to, page_of(table, published_for(given.name, experiments, trial=table.sweep.trial), experiments))


def _settings(option: str, arguments: Sequence[str]) -> dict[str, list[str]]:
    """From each KEY=A,B the key with its values. Raises ConfigError for an argument of another form."""
    odd = [argument for argument in arguments if "=" not in argument]
    if odd:
        raise ConfigError(f"{option} {odd[0]!r} is not of the form KEY=A,B.")
    return {key: values.split(",") for key, _, values in (argument.partition("=") for argument in arguments)}


def _add_where(options: Any) -> None:
    """The option that selects runs below a folder. `options`: a parser or a group of its options."""
    options.add_argument("--where", nargs="+", default=[], metavar="KEY=A,B", help="only runs with these; none: not set")


def _add_sweep(options: Any) -> None:
    """The options for the place of a sweep and the numbers asked for. `options`: a parser or a group of its options."""
    options.add_argument("--runs", default=Path("runs"), type=Path, help="the folder of runs that has the sweep; default: runs")
    options.add_argument(
        "--experiments",
        type=Path,
        help="the folder of published.csv; default: alignlab's own experiments, and those of --config-dir",
    )
    options.add_argument("--metrics", nargs="+", default=[], metavar="SUITE/METRIC", help="default: all")
    options.add_argument("--strength", nargs="+", default=[], help="strengths of a dial, or all; default: 1")
    options.add_argument("--baseline", default="", metavar="ROW", help="what every row is compared with; default: the first")


def _selection(given: argparse.Namespace) -> Selection:
    """The numbers asked for. Raises ConfigError for a strength that is no number."""
    from alignlab.tables.sweep import Selection

    if given.strength == ["all"]:
        return Selection(tuple(given.metrics), None, given.baseline)
    try:
        strengths = tuple(float(strength) for strength in given.strength or ["1"])
    except ValueError:
        raise ConfigError(f"--strength {' '.join(given.strength)}: give numbers, or all.") from None
    return Selection(tuple(given.metrics), strengths, given.baseline)


def _write(path: Path, text: str) -> None:
    """Writes a file and its folders, and prints its path. Raises RunFolderError if it cannot be written."""
    try:
        with replaced_alone(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written ({error.strerror}); give another place.") from error
    print(f"written: {path}")


def _refuse(given: argparse.Namespace, options: Iterable[str], instead: str) -> None:
    """Raises ConfigError if one of these options is given."""
    odd = [f"--{name}" for name in options if getattr(given, name)]
    if odd:
        raise ConfigError(f"{odd[0]} does not fit: {instead}.")
