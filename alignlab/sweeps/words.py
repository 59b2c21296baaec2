"""Short forms of the command line, written out before Hydra reads them.

`experiment=red/table1/lora,red` are two rows of a table, and `scale=toy` its version for the embedded world.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from alignlab.errors import ConfigError
from alignlab.registry import unknown

EXPERIMENT, SCALE, TOY = "experiment=", "scale=", "toy"
ROW = "+experiment/"
"""How a table's config names the folder of its rows."""


def expanded(words: Sequence[str], experiments: Path) -> list[str]:
    """The words as Hydra takes them. Raises ConfigError for an experiment, a row or a scale that does not exist."""
    scales = [word.removeprefix(SCALE) for word in words if word.startswith(SCALE)]
    rest = [word for word in words if not word.startswith(SCALE)]
    scale = scales[-1] if scales else "paper"
    if scale not in ("paper", TOY):
        raise ConfigError(f"scale={scale!r} is not known; choose paper, or toy for the embedded world.")
    made = [part for word in rest for part in (_experiment(word, scale, experiments) if _is_experiment(word) else [word])]
    if scale == TOY and not any(_is_experiment(word) for word in rest):
        raise ConfigError("scale=toy chooses the version of an experiment for the embedded world; add experiment=NAME.")
    return made


def _is_experiment(word: str) -> bool:
    return word.startswith(EXPERIMENT) and word != f"{EXPERIMENT}null"


def _experiment(word: str, scale: str, experiments: Path) -> list[str]:
    name = word.removeprefix(EXPERIMENT)
    if scale == TOY:
        name = _at_toy_scale(name, experiments)
    table, _, rows = name.rpartition("/")
    if table and not (experiments / f"{table}.yaml").is_file() and _toy_twin(table, experiments):
        raise ConfigError(_no_such(table, experiments, ""))  # a row alone would run with none of its table's settings
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
        if "," in name and _swept(experiments / f"{each}.yaml"):
            raise ConfigError(f"{EXPERIMENT}{name} crosses tables, which have rows of their own; start one after the other.")
    return [f"{EXPERIMENT}{name}"]


def _no_such(name: str, experiments: Path, instead: str) -> str:
    """The sentence for an experiment that does not exist; `instead`: for a row of one that does."""
    twin = None if instead else _toy_twin(name, experiments)
    if twin:
        return f"experiment={name} has no version at the paper's scale yet; add scale=toy, which is {twin}."
    tables = [str(path.relative_to(experiments).with_suffix("")) for path in sorted(experiments.glob("**/*.yaml"))]
    return instead or unknown("experiment", name, [table for table in tables if _swept(experiments / f"{table}.yaml")])


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
    """The folder of a table's rows, None for a config that is no table or whose rows are numbers only."""
    return next((key.removeprefix(ROW) for key in _swept(config) if key.startswith(ROW)), None)


def _swept(config: Path) -> dict[str, Any]:
    """What an experiment sweeps by itself; nothing for one that is a single run, or that does not exist."""
    if not config.is_file():
        return {}
    content: Any = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    return dict(content.get("hydra", {}).get("sweeper", {}).get("params", None) or {})
