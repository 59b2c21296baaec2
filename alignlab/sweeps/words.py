"""Short forms of the command line, written out before Hydra reads them.

`experiment=red/table1/lora` is one row of a table, and `scale=toy` its version for the embedded world.
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
"""How a table's sheet names the folder of its rows."""


def expanded(words: Sequence[str], experiments: Path) -> list[str]:
    """The words as Hydra takes them. Raises ConfigError for a scale that an experiment does not have."""
    scales = [word.removeprefix(SCALE) for word in words if word.startswith(SCALE)]
    rest = [word for word in words if not word.startswith(SCALE)]
    scale = scales[-1] if scales else "paper"
    if scale not in ("paper", TOY):
        raise ConfigError(f"scale={scale!r} is not known; choose paper, or toy for the embedded world.")
    made = [part for word in rest for part in (_experiment(word, scale, experiments) if _is_experiment(word) else [word])]
    if scale == TOY and not any(_is_experiment(word) for word in rest):
        raise ConfigError("scale=toy chooses the version of an experiment for the embedded world; add experiment=NAME.")
    return made


def shortened(words: Sequence[str]) -> list[str]:
    """The same the other way round: a row of an experiment as people write it."""
    row = next((word for word in words if word.startswith(ROW)), None)
    if row is None:
        return list(words)
    name = row.partition("=")[2]
    return [f"{word}/{name}" if _is_experiment(word) else word for word in words if word != row]


def _is_experiment(word: str) -> bool:
    return word.startswith(EXPERIMENT) and word != f"{EXPERIMENT}null"


def _experiment(word: str, scale: str, experiments: Path) -> list[str]:
    name = word.removeprefix(EXPERIMENT)
    if scale == TOY:
        name = _at_toy_scale(name, experiments)
    table, _, row = name.rpartition("/")
    folder = _rows_of(experiments / f"{table}.yaml") if table else None
    if folder and (experiments / folder / f"{row}.yaml").is_file():
        return [f"{EXPERIMENT}{table}", f"{ROW}{folder}={row}"]
    if folder and not (experiments / f"{name}.yaml").is_file():
        known = [path.stem for path in sorted((experiments / folder).glob("*.yaml"))]
        raise ConfigError(unknown(f"row of experiment={table}", row, known))
    if not (experiments / f"{name}.yaml").is_file() and (twin := _toy_twin(name, experiments)):
        raise ConfigError(f"experiment={name} has no version at the paper's scale yet; add scale=toy, which is {twin}.")
    return [f"{EXPERIMENT}{name}"]


def _at_toy_scale(name: str, experiments: Path) -> str:
    if name.split("/")[1:2] == [TOY]:
        return name
    twin = _toy_twin(name, experiments)
    if twin is None:
        home = name.partition("/")[0]
        known = [f"{home}/{path.stem}" for path in sorted((experiments / home / TOY).glob("*.yaml"))]
        raise ConfigError(unknown("experiment with a version for scale=toy", name, known))
    return twin


def _toy_twin(name: str, experiments: Path) -> str | None:
    """home/table as home/toy/table, if there is one; a row stays behind its table."""
    home, _, rest = name.partition("/")
    table = f"{home}/{TOY}/{rest}"
    above = table.rpartition("/")[0]
    found = any((experiments / f"{path}.yaml").is_file() for path in (table, above) if path != f"{home}/{TOY}")
    return table if found else None


def _rows_of(sheet: Path) -> str | None:
    """The folder of a table's rows, None for a sheet that is no table or whose rows are numbers only."""
    if not sheet.is_file():
        return None
    content: Any = yaml.safe_load(sheet.read_text(encoding="utf-8")) or {}
    swept = content.get("hydra", {}).get("sweeper", {}).get("params", {})
    return next((key.removeprefix(ROW) for key in swept if key.startswith(ROW)), None)
