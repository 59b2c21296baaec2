"""A config as its dataclass: no key that the dataclass lacks, every value of its type."""

from __future__ import annotations

import copy
import dataclasses
import json
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from alignlab.errors import ConfigError
from alignlab.registry import nearest


def typed(where: str, config: Mapping[str, Any], schema: type) -> Any:
    """The config as an instance of its schema. Raises ConfigError for a stray key, a missing value and one of another type.

    A sweep asks for the same configs with other numbers again and again. Which numbers they are decides neither whether a
    config is well formed nor what types come out, so one check serves all configs that differ in numbers only.
    """
    try:
        example = _checked(where, json.dumps(_with_one_number(config)), schema)
    except ConfigError:
        return _checked(where, json.dumps(config), schema)  # says it of the number that was given
    return _with_numbers(copy.deepcopy(example), config)


def refuse_strays(where: str, given: Mapping[str, Any], known: Mapping[str, Any], schema: type | None = None) -> None:
    """Raises ConfigError for a key that no config has, however it came in (`+key=value` included)."""
    hints = typing.get_type_hints(schema) if schema else {}
    for key, value in given.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in known:
            close = nearest(str(key), known)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise ConfigError(f"unknown key {path}; {hint}known here: {', '.join(known)}.")
        inner = hints.get(key)
        if isinstance(value, dict) and dataclasses.is_dataclass(inner):
            refuse_strays(path, value, {field.name: field for field in dataclasses.fields(inner)}, typing.cast(type, inner))


@lru_cache(maxsize=256)
def _checked(where: str, written: str, schema: type) -> Any:
    config = json.loads(written)
    refuse_strays(where, config, {field.name: field for field in dataclasses.fields(schema)}, schema)
    try:
        laid_over = OmegaConf.structured(schema)
        laid_over.merge_with(config)
        return OmegaConf.to_object(laid_over)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{where}.{error.full_key} has no value; its config or the command line must give one.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}.{error.full_key}: {str(error).splitlines()[0]}") from error


def _with_one_number(value: Any) -> Any:
    """The same with every whole number as 1 and every other number as 0.5."""
    if isinstance(value, Mapping):
        return {key: _with_one_number(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_one_number(inner) for inner in value]
    return {int: 1, float: 0.5}.get(type(value), value)


def _with_numbers(example: Any, given: Any) -> Any:
    """The example with the numbers that were given, each of the type that it has there."""
    if dataclasses.is_dataclass(example):
        for key, value in given.items():
            setattr(example, key, _with_numbers(getattr(example, key), value))
        return example
    if isinstance(example, dict):
        return {key: _with_numbers(example[key], value) for key, value in given.items()}
    if isinstance(example, list):
        return [_with_numbers(*pair) for pair in zip(example, given, strict=True)]
    return type(example)(given) if type(given) in (int, float) else example
