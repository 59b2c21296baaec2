"""The jobs of an experiment's tables, as Hydra would make them."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from alignlab.config import RunConfig, parse

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"


def tables(home: str) -> list[str]:
    """The sweeps of an experiment's folder, such as clm/table1."""
    return sorted(
        str(path.relative_to(EXPERIMENTS).with_suffix(""))
        for path in (EXPERIMENTS / home).glob("**/*.yaml")
        if "hydra:" in path.read_text()
    )


def cells(table: str) -> list[list[str]]:
    """The overrides of each job of a table."""
    swept = yaml.safe_load((EXPERIMENTS / f"{table}.yaml").read_text())["hydra"]["sweeper"]["params"]
    return [list(cell) for cell in product(*(_choices(key, str(values)) for key, values in swept.items()))]


@cache
def composed(table: str, *cell: str) -> DictConfig:
    """The config of one job."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("run", [f"experiment={table}", *cell])


def run_of(table: str, *cell: str) -> RunConfig:
    """The same, typed."""
    return parse(composed(table, *cell))


def _choices(key: str, swept: str) -> list[str]:
    """The overrides that a swept key stands for."""
    if swept == "glob(*)":
        swept = ",".join(sorted(path.stem for path in (EXPERIMENTS / key.removeprefix("+experiment/")).glob("*.yaml")))
    override = OverridesParser.create().parse_override(f"{key}={swept}")
    values = override.sweep_string_iterator() if override.is_sweep_override() else [swept]
    return [f"{key}={value}" for value in values]
