"""The record of what the config files compose to: `python -m tests.experiments.recorded` writes it anew.

composed.json has the command lines, and for each key of the resolved configs its values, each with the places of the command
lines that have it. One line per key, so that a change of one value is a change of one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.experiments.sweeps import ROOT, composed, distinct, tables

RECORD = Path(__file__).with_name("composed.json")
EXPERIMENT = "experiment="
GROUPS = ("method", "tuner", "control", "data", "evaluation", "trainer", "tracking", "launch")
"""The config groups beside `model`."""
Values = dict[str, str]
"""Each key of a config, dotted, with its value as JSON."""


def table_values(lines: Iterable[str]) -> dict[str, Values]:
    """What the command lines among these that start with an experiment compose to."""
    words = {line: line.split() for line in lines if line.startswith(EXPERIMENT)}
    return {line: flat(composed(table.removeprefix(EXPERIMENT), *cell)) for line, (table, *cell) in words.items()}


def choice_values(lines: Iterable[str]) -> dict[str, Values]:
    """What the others compose to."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return {line: flat(compose("run", line.split())) for line in lines if not line.startswith(EXPERIMENT)}


def table_lines() -> list[list[str]]:
    """Each distinct cell of each table, and the experiments that are neither a table nor used by one."""
    return [[f"{EXPERIMENT}{table}", *cell] for table in tables() for cell in distinct(table)] + [
        [f"{EXPERIMENT}{alone}"] for alone in ("rahf/base", "tpt/t5")
    ]


def choice_lines() -> list[list[str]]:
    """Each method by itself, and beside each model that has values of its own each choice of each group.

    The longest group gives as many lines per model as it has choices, the others start again. Other models have a line each.
    """
    choices = {group: sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml")) for group in ("model", *GROUPS)}
    sized = yaml.safe_load((ROOT / "conf" / "_sizing.yaml").read_text())
    most = max(len(choices[group]) for group in GROUPS)
    crossed = [
        [f"model={model}", *(f"{group}={choice}" for group, choice in zip(GROUPS, row, strict=True))]
        for model in choices["model"]
        for row in islice(zip(*(cycle(choices[group]) for group in GROUPS), strict=True), most if model in sized else 1)
    ]
    return [*([f"method={name}"] for name in choices["method"]), *crossed]


def flat(raw: DictConfig) -> Values:
    """The leaves of a config, resolved; one that cannot be resolved is as it is written. The folder of models is MODELS, that
    of data SHARED."""
    config = OmegaConf.create({key: value for key, value in raw.items_ex(resolve=False) if key not in ("hydra", "experiment")})
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:
        plain = _resolved_where_possible(config)
    leaves = _leaves(plain)
    for name in ("SHARED", "MODELS"):  # the tests have the one inside the other
        folder = os.environ.get(f"ALIGNLAB_{name}", name)
        leaves = {key: leaf.replace(folder, name) for key, leaf in leaves.items()}
    return leaves


def _resolved_where_possible(node: Any) -> Any:
    if OmegaConf.is_dict(node):
        return {str(key): _resolved_where_possible(_read(node, key)) for key in node}
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


def _read(node: DictConfig, key: Any) -> Any:
    try:
        return node[key]
    except OmegaConfBaseException:
        return OmegaConf.to_container(node)[key]  # type: ignore[call-overload,index]


def _leaves(plain: Any, at: str = "") -> Values:
    if isinstance(plain, Mapping) and plain:
        return {key: leaf for name, inner in plain.items() for key, leaf in _leaves(inner, f"{at}.{name}".strip(".")).items()}
    return {at: json.dumps(plain)}


def packed(values: Mapping[str, Values]) -> str:
    """The record as text."""
    lines = sorted(values)
    keys = sorted({key for each in values.values() for key in each})
    columns: dict[str, dict[str, list[int]]] = {key: {} for key in keys}
    for place, line in enumerate(lines):
        for key, value in values[line].items():
            columns[key].setdefault(value, []).append(place)
    spans = {key: {value: _spans(places) for value, places in column.items()} for key, column in columns.items()}
    rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(column)}" for key, column in spans.items())
    return f'{{"lines": {json.dumps(lines, indent=0)},\n"values": {{\n{rows}\n}}}}\n'


def unpacked(text: str) -> dict[str, Values]:
    """The values of each command line of a record."""
    record = json.loads(text)
    found: dict[str, Values] = {line: {} for line in record["lines"]}
    for key, column in record["values"].items():
        for value, spans in column.items():
            for span in spans.split():
                first, _, last = span.partition("-")
                for place in range(int(first), int(last or first) + 1):
                    found[record["lines"][place]][key] = value
    return found


def _spans(places: list[int]) -> str:
    """Ascending numbers as `0-3 7`."""
    spans: list[list[int]] = []
    for place in places:
        if spans and place == spans[-1][1] + 1:
            spans[-1][1] = place
        else:
            spans.append([place, place])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


if __name__ == "__main__":
    os.environ["ALIGNLAB_MODELS"], os.environ["ALIGNLAB_SHARED"] = "MODELS", "SHARED"
    os.environ.pop("ALIGNLAB_DATA", None)
    every = [" ".join(words) for words in (*table_lines(), *choice_lines())]
    RECORD.write_text(packed(table_values(every) | choice_values(every)), encoding="utf-8")
