"""What several commands read from their words."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from alignlab.tables.lines import Selection

Commands = Any
"""What `argparse` returns for sub-commands; its class has no public name."""
Options = Any
"""A parser or a group of its options."""


def settings(option: str, words: Sequence[str]) -> dict[str, list[str]]:
    """KEY=A,B as a key with its values. Raises ConfigError for a word of another form."""
    odd = [word for word in words if "=" not in word]
    if odd:
        raise ConfigError(f"{option} {odd[0]!r} is not of the form KEY=A,B.")
    return {key: values.split(",") for key, _, values in (word.partition("=") for word in words)}


def add_where(options: Options) -> None:
    """The option that chooses some of the runs below a folder."""
    options.add_argument("--where", nargs="+", default=[], metavar="KEY=A,B", help="only runs with these; none: not set")


def add_sweep(options: Options) -> None:
    """Where a sweep is, and which of its numbers are asked for."""
    options.add_argument("--runs", default=Path("runs"), type=Path, help="the folder of runs that has the sweep; default: runs")
    options.add_argument(
        "--experiments",
        default=Path("experiments"),
        type=Path,
        help="the folder of published.csv; default: experiments",
    )
    options.add_argument("--metrics", nargs="+", default=[], metavar="SUITE/METRIC", help="default: all")
    options.add_argument("--strength", nargs="+", default=[], help="strengths of a dial, or all; default: 1")
    options.add_argument("--baseline", default="", metavar="ROW", help="what every row is compared with; default: the first")


def selection(given: argparse.Namespace) -> Selection:
    """The numbers asked for. Raises ConfigError for a strength that is no number."""
    from alignlab.tables.lines import Selection

    if given.strength == ["all"]:
        return Selection(tuple(given.metrics), None, given.baseline)
    try:
        strengths = tuple(float(word) for word in given.strength or ["1"])
    except ValueError:
        raise ConfigError(f"--strength {' '.join(given.strength)}: give numbers, or all.") from None
    return Selection(tuple(given.metrics), strengths, given.baseline)


def write(path: Path, text: str) -> None:
    """A file, and the folders to it; says where it is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written ({error.strerror}); give another place.") from error
    print(f"written: {path}")


def refuse(given: argparse.Namespace, options: Iterable[str], instead: str) -> None:
    """Raises ConfigError for an option that does not belong to what was named."""
    odd = [f"--{name}" for name in options if getattr(given, name)]
    if odd:
        raise ConfigError(f"{odd[0]} does not fit: {instead}.")
