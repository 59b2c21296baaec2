"""What can be done with a finished run: `python -m alignlab status|table|export`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from alignlab.command_line import show_words
from alignlab.errors import AlignlabError, RunFolderError
from alignlab.tracking.ledger import Ledger


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 after an error that is the user's to mend."""
    parser = argparse.ArgumentParser(prog="python -m alignlab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="the state of every run below a folder, from its ledger")
    status.add_argument("folder", nargs="?", default="runs", type=Path)
    table = commands.add_parser("table", help="every number of the finished runs below a folder, as CSV")
    table.add_argument("folder", nargs="?", default="runs", type=Path)
    export = commands.add_parser("export", help="a plain checkpoint that transformers loads without alignlab")
    export.add_argument("run", type=Path, help="a run folder")
    export.add_argument("--to", required=True, type=Path, help="the folder to write")
    export.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    given = parser.parse_args(words)
    show_words(logging.INFO)
    try:
        if given.command == "status":
            return _status(given.folder)
        if given.command == "table":
            return _table(given.folder)
        return _export(given.run, given.to, given.dtype)
    except AlignlabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _status(folder: Path) -> int:
    """One line per run."""
    found = sorted(folder.glob("**/status.json"))
    if not found:
        raise RunFolderError(f"no run below {folder}; give the folder that `paths.runs` names.")
    for path in found:
        status = Ledger(path.parent).read("status.json") or {}
        print(f"{status.get('state', 'unreadable'):9} {status.get('time', ''):26} {path.parent}  {status.get('error', '')}")
    return 0


def _table(folder: Path) -> int:
    """CSV to standard output."""
    from alignlab.tables import results

    print(results(folder).to_csv(index=False), end="")
    return 0


def _export(run: Path, to: Path, dtype: str) -> int:
    """Merges what was learned into the backbone and writes a plain checkpoint."""
    from alignlab.finished import export

    difference = export(run, to, dtype)
    print(f"exported to {to}; largest difference of logits {difference:.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
