"""`python -m alignlab export` and `sync`: a run as a plain checkpoint, and offline W&B runs to the server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_export(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser("export", help="a plain checkpoint that transformers loads without alignlab")
    parser.add_argument("folder", type=Path, metavar="run", help="a run folder")
    parser.add_argument("--to", required=True, type=Path, help="the folder to write")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that the run's model brings")
    parser.add_argument("--control", help="the class to export, for a run with classes; none: the model without any")
    parser.set_defaults(run=_export)


def _export(given: argparse.Namespace) -> None:
    """Merges the tuner into the backbone and writes a plain checkpoint."""
    from alignlab.finished import export

    difference = export(given.folder, given.to, given.dtype, given.control, trust_remote_code=given.trust_remote_code)
    print(f"exported to {given.to}; largest difference of logits {difference:.3g}")


def add_sync(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser("sync", help="upload the W&B runs that were kept offline; what is uploaded is marked")
    parser.add_argument("folder", nargs="?", default="runs", type=Path, help="the folder of runs; default: runs")
    parser.set_defaults(run=_sync)


def _sync(given: argparse.Namespace) -> None:
    """Uploads, and prints how many runs were uploaded."""
    from alignlab.tracking.weights_and_biases import sync

    print(f"uploaded {sync(given.folder)} runs")
