"""`python -m alignlab export`: a plain checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignlab.commands.words import Commands


def add(commands: Commands) -> None:
    """Its words."""
    parser = commands.add_parser("export", help="a plain checkpoint that transformers loads without alignlab")
    parser.add_argument("folder", type=Path, metavar="run", help="a run folder")
    parser.add_argument("--to", required=True, type=Path, help="the folder to write")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--control", help="the class to export, for a run with classes; none: the model without any")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    """Merges what was learned into the backbone and writes a plain checkpoint."""
    from alignlab.finished import export

    difference = export(given.folder, given.to, given.dtype, given.control)
    print(f"exported to {given.to}; largest difference of logits {difference:.3g}")
