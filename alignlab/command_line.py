"""The command line: short forms of overrides, log lines, and one sentence for every error that the user can correct."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from alignlab.errors import AlignlabError, ConfigError
from alignlab.files import storage_error
from alignlab.registry import nearest, unknown

LONGEST = 300
"""Characters of what another library says in an error."""
PIPED_WIDTH = 140
"""Columns where the output goes to a file."""
EXPERIMENT, SCALE, TOY = "experiment=", "scale=", "toy"
ROW = "+experiment/"
"""How a table's config names the folder of its rows."""

NO_PLAN = (
    "plan=true is for one run, or for a sweep by hydra/sweeper=planned: another sweeper, such as hydra/sweeper=search, chooses"
    " its jobs by the results of earlier ones; leave plan=true or the sweeper out."
)


def show_words(level: int) -> None:
    """alignlab's own log lines to stderr; of other libraries, warnings and errors."""
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
    """The error as one sentence, or None for a bug of alignlab, whose traceback is shown."""
    if isinstance(error, AlignlabError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, ConfigCompositionException):
        cause = error.__cause__ or error.__context__
        return _unknown_key(cause) if isinstance(cause, OmegaConfBaseException) else _on_one_line(error)
    if told := storage_error(error):
        return str(told)
    if isinstance(error, (ValueError, AssertionError, KeyError, OSError)) and _raised_in(error) in ("omegaconf", "hydra"):
        if isinstance(error, OSError) and error.filename:
            return f"{brief(error.filename)} cannot be made ({error.strerror}); give other folders in the keys of hydra."
        said = _on_one_line(error).rstrip(".") or "Hydra takes no such choice"
        return f"a key on the command line does not fit the configs: {said[:LONGEST]}."
    return _on_one_line(error) if isinstance(error, HydraException) else None


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _raised_in(error: Exception) -> str:
    """The package that has raised it, or that has called the standard library, which has."""
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [name.partition(".")[0] for name in names]
    return next((package for package in reversed(packages) if package not in sys.stdlib_module_names), "")


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
    does not exist, and for a plan of a sweep that cannot be planned, before Hydra makes its folder.
    """
    sweepers = [override.partition("=")[2] for override in overrides if override.startswith("hydra/sweeper=")]
    if sweepers and sweepers[-1] != "planned" and any(override.lower() == "plan=true" for override in overrides):
        raise ConfigError(NO_PLAN)
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
