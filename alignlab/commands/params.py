"""`alignlab params`: what each row of a table trains, counted without weights, beside the paper's count."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

from alignlab.command_line import CONF, ROW, experiment_folders, experiments_in, swept_keys
from alignlab.errors import ConfigError
from alignlab.tables import experiments_with

if TYPE_CHECKING:
    from alignlab.config import RunConfig

COUNT = "params_m"
"""The published column of the count, in millions."""


def add_params(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser("params", help="the parameters that each row of a table trains, beside the published count")
    parser.add_argument("name", help="a table below experiments/, such as red/table1")
    parser.set_defaults(run=_params)


def _params(given: argparse.Namespace) -> None:
    """Prints a line per row and backbone, and one for each published row that is not among them."""
    from alignlab.tables.render import Section, markdown

    print(markdown(f"{given.name}: trained parameters", [Section("#Param", _frame(given.name), NOTES)]), end="")


NOTES = (
    "A classifier's new head is left out, as in the paper, but for a row that trains every weight.",
    "same: ours, rounded as the paper prints it.",
)


def _frame(name: str) -> Any:
    import pandas as pd

    from alignlab.tables.render import NOT_KNOWN, called, published_for

    published = published_for(name, experiments_with(name))
    left = dict(published.rows) if published else {}
    lines = []
    for row, model, config in rows_of(name):
        count, whole = counted(config)
        paper_row = called(row, model, left)
        printed = left.pop(paper_row, {}).get(COUNT, "") if paper_row else ""
        same = "" if not printed else "yes" if rounded(count, printed) == printed else "no"
        shown = {"#Param (M), published": printed or NOT_KNOWN, "ours": f"{count:,}", "same": same}
        lines.append(
            {"row": row or name, "model": model, **shown, "of the model": f"{whole:,}", "%": f"{100 * count / whole:.4f}"}
        )
    for paper_row, numbers in left.items():
        shown = {"#Param (M), published": numbers.get(COUNT, "") or NOT_KNOWN, "ours": "no such row", "same": ""}
        lines.append({"row": paper_row, "model": "", **shown, "of the model": "", "%": ""})
    return pd.DataFrame(lines)


def rounded(count: int, printed: str) -> str:
    """A count in millions with as many decimals as the printed one."""
    return f"{count / 1e6:.{len(printed.partition('.')[2])}f}"


def rows_of(name: str) -> Iterator[tuple[str, str, RunConfig]]:
    """Row, backbone and typed run of each pair of a table, its other swept keys at their first value.

    Raises ConfigError for an experiment that is no table.
    """
    from hydra import compose, initialize_config_dir

    from alignlab.config import parse

    lists = [[f"{key}={value}" for value in values] for key, values in first_values(name).items()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for cell in product(*lists):
            config = parse(compose("run", [f"experiment={name}", *cell, "tracking=off"]))
            chosen = next((word.partition("=")[2] for word in cell if word.startswith(ROW)), "")
            yield chosen, config.model.name, config


def first_values(name: str) -> Mapping[str, list[str]]:
    """From each swept key to its values: all rows and backbones, and of every other key the first."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    files = experiments_in(experiment_folders())
    if name not in files:
        raise ConfigError(
            f"there is no experiment {name!r}; give a file below experiments/ without its ending, such as red/table1."
        )
    params = swept_keys(files[name])
    if not params:
        raise ConfigError(f"experiment={name} sweeps nothing, so it has no rows; give a table, such as red/table1.")
    found: dict[str, list[str]] = {}
    for key, values in params.items():
        if str(values) == "glob(*)":
            table = key.removeprefix(ROW)
            every = sorted(row.rpartition("/")[2] for row in files if row.rpartition("/")[0] == table)
        else:
            override = OverridesParser.create().parse_override(f"{key}={values}")
            every = list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(values)]
        found[key] = every if key.startswith(ROW) or key == "model" else every[:1]
    return found


def counted(config: RunConfig) -> tuple[int, int]:
    """Parameters that a run's tuner trains, in its last stage where its stages train parts of it, without a new head unless it
    trains every weight; and those of the whole backbone.

    No weights are loaded. Raises ModelError where neither the checkpoint's config.json nor `model.architecture` is here.
    """
    from alignlab.config import GROUPS
    from alignlab.models.backbone import skeleton
    from alignlab.training.trainable import HEAD, ids_of, named_parts

    source = GROUPS["data"][config.data.name].build(config.data)
    model = skeleton(config.model, source.labels() if source.labels else None)
    whole = model.num_parameters()
    tuner = GROUPS["tuner"][config.tuner.name].build(config.tuner, model, None)
    learned = _in_last_stage(config, model, tuner)
    count = sum(parameter.numel() for parameter in learned)
    if count == whole:
        return count, whole
    head = ids_of(named_parts(model, tuner).get(HEAD, ()))
    return sum(parameter.numel() for parameter in learned if id(parameter) not in head), whole


def _in_last_stage(config: RunConfig, model: Any, tuner: Any) -> list[Any]:
    """What the last stage that learns trains of a tuner; all of it where that stage trains the backbone too, or instead."""
    from alignlab.config import GROUPS
    from alignlab.training.trainable import TUNER, check_parts, named_parts, own_parts

    stages = [stage.trains for stage in GROUPS["method"][config.method.name].build(config.method).stages if stage.trains]
    if not stages or any(name.partition(".")[0] != TUNER for name in stages[-1]):
        return list(tuner.parameters())
    check_parts(stages[-1], model, tuner)
    parts = own_parts(stages[-1], named_parts(model, tuner))
    return [parameter for part in parts if part.settings.learning_rate != 0 for parameter in part.parameters]
