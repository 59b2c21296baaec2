"""`python -m alignlab lm-eval`: lm-evaluation-harness's own command, with finished runs among its models."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from typing import Any

from alignlab.errors import ConfigError


def add_lm_eval(commands: Any) -> None:
    """The command. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser(
        "lm-eval",
        help="lm-evaluation-harness on a finished run: lm-eval run --model alignlab --model_args run=FOLDER,strength=1.5 ...",
        add_help=False,
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what lm-eval gets")
    parser.set_defaults(run=_lm_eval)


def _lm_eval(given: argparse.Namespace) -> None:
    """Registers the model `alignlab`, and calls the harness."""
    if find_spec("lm_eval") is None:
        raise ConfigError("lm-evaluation-harness is not installed; pip install 'alignlab[lm_eval]'.")
    from lm_eval.__main__ import cli_evaluate

    from alignlab.commands import harness_model  # noqa: F401  registers the model

    before, sys.argv = sys.argv, ["lm-eval", *given.words]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
