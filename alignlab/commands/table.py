"""`python -m alignlab table`: the numbers of a folder of runs, or of a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignlab.commands.words import Commands, add_sweep, add_where, refuse, selection, settings, write

FOLDER_ONLY, SWEEP_ONLY = ("means", "against", "where"), ("metrics", "strength", "baseline", "form", "to", "obtained")

RUNS = "runs"
"""The folder that is read where nothing is named."""


def add(commands: Commands) -> None:
    """Its words."""
    parser = commands.add_parser("table", help="the table of a sweep, or every number of the runs below a folder, as CSV")
    parser.add_argument("name", nargs="?", default=RUNS, help="a sweep, such as red/toy/table1, or a folder of runs")
    of_folder = parser.add_argument_group("of a folder")
    shape = of_folder.add_mutually_exclusive_group()
    shape.add_argument("--means", action="store_true", help="one line per setting: mean over seeds, lowest and highest")
    shape.add_argument(
        "--against", nargs="+", default=[], metavar="KEY=VALUE", help="each setting minus the one named here, paired by seed"
    )
    add_where(of_folder)
    of_sweep = parser.add_argument_group("of a sweep")
    add_sweep(of_sweep)
    of_sweep.add_argument("--form", choices=["md", "latex", "csv"], help="md to a terminal; to a file, what its suffix says")
    of_sweep.add_argument("--to", type=Path, help="the file to write: .md, .tex or .csv")
    of_sweep.add_argument("--obtained", type=Path, metavar="FILE.csv", help="every number of every seed, and its origin")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    """To standard output, or to a file."""
    if given.name == RUNS or Path(given.name).is_dir():
        refuse(given, SWEEP_ONLY, f"{given.name} is a folder; give the name of a sweep")
        _of_folder(given)
    else:
        refuse(given, FOLDER_ONLY, f"{given.name} is a sweep; give a folder")
        _of_sweep(given)


def _of_folder(given: argparse.Namespace) -> None:
    from alignlab.tables.folders import differences, means, results

    against = settings("--against", given.against)
    frame = results(Path(given.name), settings("--where", given.where))
    made = differences(frame, against) if against else means(frame) if given.means else frame
    print(made.to_csv(index=False), end="")


def _of_sweep(given: argparse.Namespace) -> None:
    from alignlab.tables.blocks import blocks_of
    from alignlab.tables.forms import form_for, latex, long_csv, markdown
    from alignlab.tables.jobs import read_sweep
    from alignlab.tables.lines import table_of
    from alignlab.tables.published import published_for
    from alignlab.tables.results import obtained

    sweep = read_sweep(given.runs, given.name)
    if given.obtained:
        refuse(given, ("metrics", "strength", "baseline", "form", "to"), "--obtained writes every number, as CSV")
        write(given.obtained, obtained(sweep))
        return
    table = table_of(sweep, selection(given))
    published = published_for(given.name, given.experiments)
    form = form_for(given.form, given.to)
    if form == "csv":
        text = long_csv(table, published)
    else:
        text = {"md": markdown, "latex": latex}[form](given.name, blocks_of(table, published, given.experiments))
    if given.to:
        write(given.to, text)
    else:
        print(text, end="")
