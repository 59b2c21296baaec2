"""`python -m alignlab sync`: offline W&B runs to the server."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignlab.commands.words import Commands


def add(commands: Commands) -> None:
    """Its words."""
    parser = commands.add_parser("sync", help="upload the W&B runs that were kept offline; what is uploaded is marked")
    parser.add_argument("folder", nargs="?", default="runs", type=Path, help="the folder of runs; default: runs")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    """Uploads, and says how many."""
    from alignlab.tracking.weights_and_biases import sync

    print(f"uploaded {sync(given.folder)} runs")
