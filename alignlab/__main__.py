"""The command `alignlab`, also `python -m alignlab`: `alignlab run` starts runs, the others read, draw or export them."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence

from alignlab.command_line import asks_for_completion, sentence, show_words
from alignlab.commands.measures import add_judge_agreement, add_lm_eval
from alignlab.commands.params import add_params
from alignlab.commands.run import add_run, start
from alignlab.commands.runs import add_export, add_push, add_status, add_sync
from alignlab.commands.serve import add_serve
from alignlab.commands.tables import add_plot, add_report, add_table
from alignlab.files import package_version
from alignlab.registry import unknown

COMMANDS = (
    add_run,
    add_status,
    add_table,
    add_plot,
    add_report,
    add_params,
    add_export,
    add_push,
    add_serve,
    add_sync,
    add_lm_eval,
    add_judge_agreement,
)


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 after an error that the user can correct, or 2 for a command that there is not."""
    words = sys.argv[1:] if words is None else words
    if words and words[0] == "run":  # what follows is Hydra's
        start(words[1:])
        return 0
    parser = argparse.ArgumentParser(prog="alignlab", description=__doc__)
    parser.add_argument("--version", action="version", version=f"alignlab {package_version('alignlab')}")
    commands = parser.add_subparsers(dest="command", required=True)
    for add_command in COMMANDS:
        add_command(commands)
    if asks_for_completion(words):
        start(words, list(commands.choices))
        return 0
    if words and not words[0].startswith("-") and words[0] not in commands.choices:
        told = unknown("command", words[0], commands.choices)
        if "=" in words[0]:
            told = f"{words[0]!r} is no command; `alignlab run {shlex.join(words)}` starts a run."
        print(f"error: {told}", file=sys.stderr)
        return 2
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
