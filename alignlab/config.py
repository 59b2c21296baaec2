"""The typed run: configs laid on top of each other come in as one mapping and go out as dataclasses that fit together.

`parse` is the only door. It refuses keys that no config has, values of the wrong type, and parts that do not fit each
other, each in one sentence and before torch is imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from alignlab.data import SOURCES
from alignlab.data.config import DataConfig
from alignlab.errors import ConfigError
from alignlab.evaluation import CONTROLS, EVALUATIONS
from alignlab.evaluation.config import EvaluationConfig, FormConfig, StrengthConfig
from alignlab.fit import check_fit, check_validation, fitting_suites
from alignlab.launching import LocalLaunch, SlurmLaunch
from alignlab.methods import METHODS
from alignlab.models import MODELS
from alignlab.models.config import ModelConfig
from alignlab.registry import Entry, Registry, unknown
from alignlab.sheets import refuse_strays, typed
from alignlab.tracking import TRACKERS
from alignlab.training.config import TrainerConfig
from alignlab.tuners import TUNERS
from alignlab.tuners.config import TunerConfig


@dataclass
class PathsConfig:
    """`runs`: where run folders go. `data`, `models`: local folders, null where there are none."""

    runs: str
    data: str | None
    models: str | None


@dataclass
class SizingConfig:
    """Which sizing configs were laid over the tuner's, the control's and the method's own numbers; null = none."""

    tuner: str | None
    control: str | None
    method: str | None


def _same(config: Any) -> Any:
    return config


GROUPS: Mapping[str, Registry] = {
    "method": METHODS,
    "tuner": TUNERS,
    "model": MODELS,
    "data": SOURCES,
    "control": CONTROLS,
    "evaluation": EVALUATIONS,
    "trainer": Registry("trainer", dict.fromkeys(("default", "validated", "fsdp", "deepspeed"), Entry(TrainerConfig, _same))),
    "tracking": TRACKERS,
    "launch": Registry("launch", {"local": Entry(LocalLaunch, _same), "slurm": Entry(SlurmLaunch, _same)}),
}
ALONE = {"seed": int, "force": bool, "plan": bool, "folder": str, "sweep": str}
"""Keys that stand in no group; a text may be null."""
NO_INFLUENCE = ("seed", "force", "plan", "folder", "sweep", "paths", "tracking", "launch")
"""Keys that do not change what a run computes from its seed, and so are not in its fingerprint."""


@dataclass(frozen=True)
class RunConfig:
    """A run that fits together. `plan`: only say what would be done. `sweep`: the sweep that it is a job of. `plain` is the
    same as nested dicts, for files; `left_out`: suites without their data."""

    seed: int
    force: bool
    plan: bool
    folder: str | None
    sweep: str | None
    paths: PathsConfig
    sizing: SizingConfig
    method: Any
    tuner: TunerConfig
    model: ModelConfig
    data: DataConfig
    control: StrengthConfig | FormConfig
    evaluation: EvaluationConfig
    trainer: TrainerConfig
    tracking: Any
    launch: LocalLaunch | SlurmLaunch
    suites: tuple[str, ...]
    left_out: Mapping[str, str]
    plain: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Eight characters that change with anything that changes the result, the seed aside."""
        decisive: dict[str, Any] = {key: value for key, value in self.plain.items() if key not in NO_INFLUENCE}
        decisive["contents"] = [self.model.cache_key(), self.data.cache_key(), self.tuner.cache_key()]
        decisive["contents"] += [self.method.cache_key()] if self.method.cache_key() else []
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        """method-tuner-model-data; of a control, its form for the tuner."""
        tuner = self.control.name if isinstance(self.control, FormConfig) else self.tuner.name
        return "-".join((self.method.name, tuner, self.model.name, self.data.name))


def parse(raw: DictConfig) -> RunConfig:
    """The typed run. Raises ConfigError for stray keys, wrong types, missing values and parts that do not fit."""
    plain = _resolved(raw)
    refuse_strays("", plain, dict.fromkeys([*ALONE, "experiment", "paths", "sizing", *GROUPS]))
    parts = {group: _part(group, plain, GROUPS[group]) for group in GROUPS}
    for part in parts.values():
        if hasattr(part, "check"):
            part.check()
    chosen = {group: (GROUPS[group][part.name], part) for group, part in parts.items()}
    offered = check_fit(chosen)
    suites, left_out = fitting_suites(parts["evaluation"], offered)
    check_validation(parts["trainer"], parts["evaluation"], offered)
    return RunConfig(
        **{key: _simple(plain, key, kind) for key, kind in ALONE.items()},
        paths=typed("paths", plain.get("paths") or {}, PathsConfig),
        sizing=typed("sizing", plain.get("sizing") or {}, SizingConfig),
        suites=suites,
        left_out=left_out,
        plain={key: value for key, value in plain.items() if key != "experiment"},
        **parts,
    )


def parts_of(raw: DictConfig, groups: Sequence[str]) -> dict[str, Any]:
    """Some groups of a run as their dataclasses, unchecked: what a finished run needs of its config."""
    plain = _resolved(raw)
    return {group: _part(group, plain, GROUPS[group]) for group in groups}


def _resolved(raw: DictConfig) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(raw, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value; give it one on the command line.") from error
    except InterpolationKeyError as error:
        raise ConfigError(_taken_from_nowhere(raw, error)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(resolved, dict)
    return typing.cast("dict[str, Any]", resolved)


def _taken_from_nowhere(raw: DictConfig, error: InterpolationKeyError) -> str:
    """The sentence for a value that one config takes from another, which has no such key."""
    found = re.search(r"'((\w+)\.[\w.]+)'", str(error))
    if found is None or found.group(2) not in GROUPS:
        return f"{error.full_key}: {str(error).splitlines()[0]}"
    key, group = found.groups()
    table, _, row = key.rpartition(".")[0].rpartition(".")
    rows = OmegaConf.select(raw, table) if row and OmegaConf.select(raw, f"{table}.{row}") is None else None
    if isinstance(rows, DictConfig):  # a row of a table that its config holds: method.presets.paper
        return unknown(table, row, [str(name) for name in rows])
    choice = OmegaConf.select(raw, f"{group}.name")
    field = key.split(".")[1]
    having = [
        name for name, entry in GROUPS[group].items() if field in {each.name for each in dataclasses.fields(entry.config)}
    ]
    return f"{error.full_key} is taken from {key}, which {group}={choice} does not have; choose {group}={'|'.join(having)}."


def _part(group: str, plain: Mapping[str, Any], registry: Registry) -> Any:
    config = plain.get(group)
    if not isinstance(config, dict) or "name" not in config:
        raise ConfigError(f"{group} is not chosen; add {group}=NAME, one of {', '.join(registry)}.")
    return typed(group, config, registry[str(config["name"])].config)


def _simple(plain: Mapping[str, Any], key: str, kind: type) -> Any:
    value = plain.get(key)
    if kind is str and value is None:
        return None
    if kind is int and type(value) is int and value < 0:
        raise ConfigError(f"{key}={value} must not be negative.")
    if type(value) is not kind:
        wanted = {int: "a whole number", bool: "true or false", str: "a text"}[kind]
        raise ConfigError(f"{key}={value!r} must be {wanted}.")
    return value
