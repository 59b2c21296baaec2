"""Commands that read, draw or export runs: `python -m alignlab COMMAND`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from alignlab.command_line import sentence, show_words
from alignlab.commands.measures import add_judge_agreement, add_lm_eval
from alignlab.commands.params import add_params
from alignlab.commands.runs import add_export, add_push, add_status, add_sync
from alignlab.commands.tables import add_plot, add_report, add_table

COMMANDS = (
    *(add_status, add_table, add_plot, add_report, add_params, add_export, add_push, add_sync),
    *(add_lm_eval, add_judge_agreement),
)


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 after an error that the user can correct."""
    parser = argparse.ArgumentParser(prog="python -m alignlab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add_command in COMMANDS:
        add_command(commands)
    given = parser.parse_args(words)
    show_words(logging.INFO)
    try:
        given.run(given)
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
