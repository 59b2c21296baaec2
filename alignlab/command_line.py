"""What the person at the keyboard sees: log lines, and one sentence for every error that is theirs to mend."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from alignlab.errors import AlignlabError
from alignlab.registry import nearest

PIPED_WIDTH = 140
"""Columns where the output goes to a file."""


def show_words(level: int) -> None:
    """alignlab's own log lines to stderr; other libraries speak from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    words = logging.getLogger("alignlab")
    words.handlers[:] = [handler]
    words.setLevel(level)
    words.propagate = False


def console() -> Console:
    """Standard output, wide enough for a table where it goes to a file."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)


def sentence(error: Exception) -> str | None:
    """The error as one sentence, or None for one that is ours to mend and deserves its traceback."""
    if isinstance(error, AlignlabError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, ConfigCompositionException):
        cause = error.__cause__ or error.__context__
        return _unknown_key(cause) if isinstance(cause, OmegaConfBaseException) else str(error)
    if isinstance(error, ValueError) and _raised_in(error).startswith("omegaconf."):
        return f"a key on the command line does not fit the configs: {error}."
    return " ".join(str(error).split()) if isinstance(error, HydraException) else None


def _raised_in(error: Exception) -> str:
    """The module that has raised it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def _missing_choice(error: MissingConfigException) -> str:
    """A group choice that has no config."""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    options = sorted(error.options or [])
    if not options:
        return f"no config {error.missing_cfg_file!r}; `python run.py --help` lists the groups."
    close = nearest(name, options)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown {group} {name!r}; {hint}known: {', '.join(options)}."


def _unknown_key(cause: OmegaConfBaseException) -> str:
    """A key that the configs do not have, or a value of the wrong type."""
    key = str(cause.full_key)
    known = _siblings(cause.parent_node)
    if not known or str(cause.key) in known:
        return f"{key}: {str(cause).splitlines()[0]}"
    close = nearest(str(cause.key), known)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown key {key}; {hint}known here: {', '.join(known)}."


def _siblings(node: Any) -> list[str]:
    try:
        return [str(key) for key in node]
    except TypeError:
        return []
