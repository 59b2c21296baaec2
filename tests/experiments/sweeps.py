"""The jobs of an experiment's tables, as Hydra would make them."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from alignlab.config import RunConfig, parse
from alignlab.sweeps.jobs import Composer

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
ROWS = "+experiment/"
"""How a swept key starts that chooses a row."""


ON_GIVEN_DATA = ("red/small", "clm/reasoning")
"""Tables whose models and data are folders of the user; test_red_tables.py and test_clm_tables.py try them."""


def tables(home: str = "*") -> list[str]:
    """The sweeps of a home of experiments, or of all, such as clm/table1, but those on a user's folders."""
    every = [name_of(path) for path in sorted(EXPERIMENTS.glob(f"{home}/**/*.yaml"))]
    return [name for name in every if name not in ON_GIVEN_DATA and swept(name)]


def name_of(path: Path) -> str:
    """A file below the experiments as `experiment=` calls it."""
    return str(path.relative_to(EXPERIMENTS).with_suffix(""))


def model_config(name: str) -> dict[str, Any]:
    """The content of one file."""
    return yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text()) or {}


def swept(name: str) -> dict[str, Any]:
    """The lists that a table crosses; none for a file that is no table."""
    return model_config(name).get("hydra", {}).get("sweeper", {}).get("params", {})


def cells(table: str) -> list[list[str]]:
    """The overrides of each job of a table."""
    return [list(cell) for cell in product(*(_choices(key, str(values)) for key, values in swept(table).items()))]


def tried(table: str) -> list[list[str]]:
    """Every cell of a table but further seeds of all cells but the first: seeds are plain values that nothing reads."""
    every = cells(table)
    seeds = [word for word in every[0] if word.startswith("seed=")]
    without = [word for word in every[0] if word not in seeds]
    return [cell for cell in every if set(seeds) <= set(cell) or set(without) <= set(cell)]


def distinct(table: str) -> list[list[str]]:
    """The first of the cells that choose the same configs and differ in plain values only."""
    found: dict[tuple[str, ...], list[str]] = {}
    for cell in cells(table):
        found.setdefault(tuple(word for word in cell if word.startswith("+") or _configs(word.partition("=")[0])), cell)
    return list(found.values())


def composed(table: str, *cell: str) -> DictConfig:
    """The config of one job; it holds until the next is composed."""
    return _composer([f"experiment={table}", *cell])


@cache
def run_of(table: str, *cell: str) -> RunConfig:
    """The same, typed."""
    return parse(composed(table, *cell))


def _load(words: list[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("run", words)


def _configs(group: str) -> list[str]:
    return [path.stem for path in (ROOT / "conf" / group).glob("*")]


_composer = Composer(_load, _configs)


def _choices(key: str, values: str) -> list[str]:
    """The overrides that a swept key stands for."""
    if values == "glob(*)":
        values = ",".join(sorted(path.stem for path in (EXPERIMENTS / key.removeprefix(ROWS)).glob("*.yaml")))
    override = OverridesParser.create().parse_override(f"{key}={values}")
    listed = override.sweep_string_iterator() if override.is_sweep_override() else [values]
    return [f"{key}={value}" for value in listed]
