"""The command line: short forms of overrides, log lines, and one sentence for every error that the user can correct."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from alignlab.errors import AlignlabError, ConfigError
from alignlab.registry import nearest, unknown

PIPED_WIDTH = 140
"""Columns where the output goes to a file."""
EXPERIMENT, SCALE, TOY = "experiment=", "scale=", "toy"
ROW = "+experiment/"
"""How a table's config names the folder of its rows."""


def show_words(level: int) -> None:
    """alignlab's own log lines to stderr; other libraries speak from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    words = logging.getLogger("alignlab")
    words.handlers[:] = [handler]
    words.setLevel(level)
    words.propagate = False


def share_config_store() -> None:
    """Lets Hydra use its store of structured configs where it copies it: once for every group that it lists, which is most of
    the time that --help takes. There is one store per process, and what is read from it is copied then."""
    ConfigStore.__deepcopy__ = lambda store, _memo: store  # type: ignore[attr-defined]


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


def expand_overrides(overrides: Sequence[str], experiments: Path) -> list[str]:
    """The overrides as Hydra reads them: `experiment=red/table1/lora,red` chooses two rows of a table, `scale=toy` its version
    for the embedded world, `KEY={a: 1}` adds keys to a mapping. Raises ConfigError for an experiment, a row or a scale that
    does not exist.
    """
    scales = [override.removeprefix(SCALE) for override in overrides if override.startswith(SCALE)]
    rest = [override for override in overrides if not override.startswith(SCALE)]
    scale = scales[-1] if scales else "paper"
    if scale not in ("paper", TOY):
        raise ConfigError(f"scale={scale!r} is not known; choose paper, or toy for the embedded world.")
    expanded: list[str] = []
    for override in rest:
        expanded += _experiment(override, scale, experiments) if _is_experiment(override) else [_opened(override)]
    if scale == TOY and not any(_is_experiment(override) for override in rest):
        raise ConfigError("scale=toy chooses the version of an experiment for the embedded world; add experiment=NAME.")
    return expanded


def _opened(override: str) -> str:
    """The override as one that may add keys, where its value is a mapping: some options are mappings that begin empty."""
    return f"++{override}" if re.match(r"[\w.]+=\{", override) else override


def _is_experiment(override: str) -> bool:
    return override.startswith(EXPERIMENT) and override != f"{EXPERIMENT}null"


def _experiment(override: str, scale: str, experiments: Path) -> list[str]:
    name = override.removeprefix(EXPERIMENT)
    if scale == TOY:
        name = _at_toy_scale(name, experiments)
    table, _, rows = name.rpartition("/")
    if table and not (experiments / f"{table}.yaml").is_file() and _toy_twin(table, experiments):
        raise ConfigError(_no_such(table, experiments, ""))  # a row alone would run without the values of its table
    folder = _rows_of(experiments / f"{table}.yaml") if table else None
    known = [path.stem for path in sorted((experiments / folder).glob("*.yaml"))] if folder else []
    wrong = [row for row in rows.split(",") if row not in known]
    if folder and not wrong:
        return [f"{EXPERIMENT}{table}", f"{ROW}{folder}={rows}"]
    for each in name.split(","):
        if not (experiments / f"{each}.yaml").is_file():
            raise ConfigError(
                _no_such(each, experiments, unknown(f"row of experiment={table}", wrong[0], known) if known else "")
            )
        if "," in name and _swept_keys(experiments / f"{each}.yaml"):
            raise ConfigError(f"{EXPERIMENT}{name} crosses tables, which have rows of their own; start one after the other.")
    return [f"{EXPERIMENT}{name}"]


def _no_such(name: str, experiments: Path, instead: str) -> str:
    """The error for an experiment that does not exist; `instead`: the error for a row of one that does."""
    twin = None if instead else _toy_twin(name, experiments)
    if twin:
        return f"experiment={name} has no version at the paper's scale yet; add scale=toy, which is {twin}."
    tables = [str(path.relative_to(experiments).with_suffix("")) for path in sorted(experiments.glob("**/*.yaml"))]
    return instead or unknown("experiment", name, [table for table in tables if _swept_keys(experiments / f"{table}.yaml")])


def _at_toy_scale(name: str, experiments: Path) -> str:
    if name.split("/")[1:2] == [TOY]:
        return name
    twin = _toy_twin(name, experiments)
    if twin is None:
        home = name.partition("/")[0]
        configs = sorted(experiments.glob(f"{home}/{TOY}/*.yaml")) or sorted(experiments.glob(f"*/{TOY}/*.yaml"))
        known = [f"{path.parents[1].name}/{path.stem}" for path in configs]
        raise ConfigError(unknown("experiment with a version for scale=toy", name, known))
    return twin


def _toy_twin(name: str, experiments: Path) -> str | None:
    """home/table as home/toy/table, if there is one; a row stays behind its table."""
    home, _, rest = name.partition("/")
    table = f"{home}/{TOY}/{rest}"
    above = table.rpartition("/")[0]
    found = any((experiments / f"{path}.yaml").is_file() for path in (table, above) if path != f"{home}/{TOY}")
    return table if found else None


def _rows_of(config: Path) -> str | None:
    """The folder of a table's rows, None for a config that is no table or that sweeps values only."""
    return next((key.removeprefix(ROW) for key in _swept_keys(config) if key.startswith(ROW)), None)


def _swept_keys(config: Path) -> dict[str, Any]:
    """The keys that an experiment's config sweeps; empty for a single run, and if there is no such config."""
    if not config.is_file():
        return {}
    content: Any = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    return dict(content.get("hydra", {}).get("sweeper", {}).get("params", None) or {})
