"""`python -m alignlab plot`: figures of a sweep, or of a folder of runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignlab.commands.words import Commands, add_where, refuse, settings

FOLDER_METRICS = ("toy/reward", "toy/capability")


def add(commands: Commands) -> None:
    """Its words."""
    parser = commands.add_parser("plot", help="a figure of a sweep, or of the finished runs below a folder")
    parser.add_argument("name", help="a sweep, such as red/toy/table1, or a folder of runs")
    parser.add_argument("--to", required=True, type=Path, help="the picture to write: .png, .svg or .pdf")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="SUITE/METRIC", help="default: the first two")
    parser.add_argument("--map", nargs=2, metavar=("ACROSS", "DOWN"), help="a heat map over two settings, at strength 1")
    add_where(parser.add_argument_group("of a folder"))
    of_sweep = parser.add_argument_group("of a sweep")
    of_sweep.add_argument("--kind", choices=["curves", "dial", "frontier", "map"], help="what to draw; default: dial")
    of_sweep.add_argument(
        "--runs", default=Path("runs"), type=Path, help="the folder of runs that has the sweep; default: runs"
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    """Draws one picture."""
    if Path(given.name).is_dir():
        refuse(given, ("kind",), f"{given.name} is a folder; give the name of a sweep")
        print(f"drawn: {_of_folder(given)}")
    else:
        refuse(given, ("where",), f"{given.name} is a sweep; give a folder")
        print(f"drawn: {_of_sweep(given)}")


def _of_folder(given: argparse.Namespace) -> Path:
    from alignlab.plots.jobs import chosen_metrics, split
    from alignlab.plots.sweep import draw_map, draw_sweep
    from alignlab.tables.folders import along_a_dial, bands, crossed, results

    frame = results(Path(given.name), settings("--where", given.where))
    metrics = given.metrics or FOLDER_METRICS
    if given.map:
        across, down = given.map
        return draw_map({metric: crossed(frame, across, down, metric) for metric in metrics}, given.to)
    frame = along_a_dial(bands(frame))
    known = sorted(set(frame.suite + "/" + frame.metric))
    return draw_sweep(frame, given.to, [split(metric) for metric in chosen_metrics(known, metrics, 2)])


def _of_sweep(given: argparse.Namespace) -> Path:
    from alignlab.plots.jobs import draw
    from alignlab.tables.jobs import read_sweep

    kind = given.kind or ("map" if given.map else "dial")
    return draw(read_sweep(given.runs, given.name), kind, given.to, given.metrics, given.map or ())
