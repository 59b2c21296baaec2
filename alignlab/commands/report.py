"""`python -m alignlab report`: a sweep as one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignlab.commands.words import Commands, add_sweep, selection, write


def add(commands: Commands) -> None:
    """Its words."""
    parser = commands.add_parser("report", help="a sweep as one HTML file: jobs, numbers, figures and where they came from")
    parser.add_argument("name", help="a sweep, such as red/toy/table1")
    parser.add_argument("--to", required=True, type=Path, help="the file to write, e.g. report.html")
    add_sweep(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    """Writes the page."""
    from alignlab.pages.report import page_of
    from alignlab.tables.jobs import read_sweep
    from alignlab.tables.lines import table_of
    from alignlab.tables.published import published_for

    table = table_of(read_sweep(given.runs, given.name), selection(given))
    write(given.to, page_of(table, published_for(given.name, given.experiments), given.experiments))
