"""What can be chosen, and what a config may hold: tables of choices, fields with their range, and the check of both.

A field of a config class declares its range once, `rank: Annotated[int, number(minimum=1)]`; `typed` checks every field while
it makes the instance. What involves several fields is checked by the class's own `check(where)`, where it has one.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from pathlib import Path, PurePath
from reprlib import repr as brief
from types import NoneType, UnionType
from typing import Annotated, Any

from alignlab.errors import ConfigError

LARGEST = 2**53
"""The bound of numbers without a declared one: up to here every whole number is a float too."""
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes that a name in a path, and a path, can have on Linux."""
LARGEST_RANK = 8192
"""Of a low-rank update; the layers of few models are wider, and a rank above their width adds nothing."""
KINDS = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}

Capabilities = Callable[[Any], frozenset[str]]
"""From a choice's own config to the capabilities that it requires, or provides."""


def capabilities(*fixed: str, where: Callable[[Any], object] | None = None, otherwise: str = "") -> Capabilities:
    """The same capabilities whatever the config says; and `otherwise`, where the config does not say `where`."""
    return lambda config: frozenset(fixed if where is None or where(config) else (*fixed, otherwise))


@dataclass(frozen=True)
class Entry:
    """One choice: its config class (the schema of its config), how to build it, and what it requires of the others.

    `requires` and `provides` read from the choice's own config which capabilities it requires of the chosen data, model or
    tuner (`pairs`, `oracle`, ...), and which it provides. A need that nobody provides is refused before any weight is loaded.
    """

    config: type
    build: Callable[..., Any]
    requires: Capabilities = field(default=capabilities())
    provides: Capabilities = field(default=capabilities())


def deferred(place: str, *, first: int | None = None) -> Callable[..., Any]:
    """The function or class at module.name, whose module is imported when it is first called; it gets what is given, or the
    `first` so many of it."""
    module, _, name = place.rpartition(".")
    return lambda *given, **named: getattr(import_module(module), name)(*given[:first], **named)


class Registry(Mapping[str, Entry]):
    """A named, read-only table of entries."""

    def __init__(self, kind: str, entries: Mapping[str, Entry]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise ConfigError(unknown(self.kind, name, self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def nearest(name: str, known: Iterable[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """The known names that look most like the given one, best first. `cutoff`: how much they must, up to 1."""
    return get_close_matches(name, list(known), n=count, cutoff=cutoff)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not known: what was given, the nearest names, all names."""
    names = sorted(known)
    close = nearest(name, names)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    listed = f"known: {', '.join(names)}" if names else "there is none"
    return f"unknown {kind} {name!r}; {hint}{listed}."


def choose(path: str, table: Any) -> Any:
    """The value of `${choose:KEY.KEY,{...}}`: the table is entered by one key after another, or by `other`, up to a value.

    A paper's values that go with a row, a model and a task stand so in one place. Raises ConfigError for a key without a value.
    """
    for word in path.split("."):
        if not isinstance(table, Mapping):
            break
        if word not in table and "other" not in table:
            raise ConfigError(unknown(f"choice in {path}", word, [str(key) for key in table]))
        table = table[word] if word in table else table["other"]
    if isinstance(table, Mapping):
        raise ConfigError(f"{path} names no value of a table; the next key is one of {', '.join(map(str, table))}.")
    return table


@dataclass(frozen=True)
class Allowed:
    """What a field may hold beside its type; in a list or a dict, each value. Made by `number`, `one_of`, `text`, `path`,
    `pattern` and `names`.

    `minimum` and `maximum` are inclusive bounds, `above` and `below` exclusive ones. `note`: the reason, for the message.
    `holds`: a text that stands in the value exactly once; `filled`: the value is not blank. `least` values stand in a list;
    `unique`: each of them once. `path`: a place in a file system, `relative`: below another one. `names`: null, a pattern, or
    a list of names; `empty`: what is wrong with an empty list.
    Relations to other fields: `either` (of the two, exactly one is null), `unlike` (the two differ), `needs` (must not be null
    beside this one; with the advice), `alone` (a field and a value of it that this one cannot stand beside).
    `smoke`: the most at scale=smoke, 0 = what was given; `null_is_all`: null is more than that, and is cut too.
    """

    minimum: float = -LARGEST
    above: float = -math.inf
    maximum: float = LARGEST
    below: float = math.inf
    note: str = ""
    choices: tuple[str, ...] = ()
    holds: str = ""
    names: bool = False
    empty: str = ""
    filled: bool = False
    path: bool = False
    relative: bool = False
    unlike: str = ""
    least: int = 0
    unique: bool = False
    either: str = ""
    needs: tuple[str, str] = ("", "")
    alone: tuple[str, str] = ("", "")
    smoke: int = 0
    null_is_all: bool = False

    @property
    def bounds(self) -> str:
        """The declared bounds as text."""
        low = f"above {self.above}" if self.above > -math.inf else f"at least {self.minimum}"
        high = f"below {self.below}" if self.below < math.inf else f"at most {self.maximum}"
        declared = (
            (low, self.minimum > -LARGEST or self.above > -math.inf),
            (high, self.maximum < LARGEST or self.below < math.inf),
        )
        return " and ".join(words for words, given in declared if given)


ANY = Allowed()


def number(**allowed: Any) -> Allowed:
    """A number, or several, inside bounds."""
    return Allowed(**allowed)


def rank() -> Allowed:
    """The rank of a low-rank update, or the width of a bottleneck."""
    return Allowed(minimum=1, maximum=LARGEST_RANK)


def random_seed() -> Allowed:
    """A seed as numpy and torch take it."""
    return Allowed(minimum=0, maximum=2**32 - 1)


def one_of(*choices: str, **allowed: Any) -> Allowed:
    """One of these words, or several of them."""
    return Allowed(choices=choices, **allowed)


def text(**allowed: Any) -> Allowed:
    """A text that is not blank, or holds something exactly once."""
    return Allowed(**allowed)


def path() -> Allowed:
    """The path of a file or folder, as every file system takes it."""
    return Allowed(filled=True, path=True)


def pattern() -> Allowed:
    """A pattern of file names below a folder, with *, ? and [] as in a shell."""
    return Allowed(filled=True, path=True, relative=True)


def names(**allowed: Any) -> Allowed:
    """Names of layers: null, one pattern that matches whole names, or a list."""
    return Allowed(names=True, **allowed)


def like(schema: type, name: str) -> Allowed:
    """What a field of another class may hold."""
    return _fields(schema)[name][1]


def typed(where: str, config: Mapping[str, Any], schema: type, *, whole: bool = True) -> Any:
    """The config as an instance of its schema. Raises ConfigError for a stray key, a missing value, and one of another type or
    outside its range; with `whole`, also for values that do not go together."""
    fields = _fields(schema)
    refuse_strays(where, config, fields)
    made: dict[str, Any] = {}
    for name, (hint, allowed) in fields.items():
        key = f"{where}.{name}" if where else name
        if name not in config:
            raise ConfigError(f"{key} has no value; its config or the command line must give one.")
        made[name] = _value(key, config[name], hint, allowed, whole)
    instance = schema(**made)
    if whole:
        for name, (_, allowed) in fields.items():
            _check_together(where, name, made, allowed)
        if hasattr(instance, "check"):
            instance.check(where)
    return instance


def cut(config: Any, schema: type) -> Any:
    """The config of a schema with no number above what its field declares for scale=smoke. What is no mapping stays."""
    if not isinstance(config, Mapping):
        return config
    small, fields = dict(config), _fields(schema)
    for name, (hint, allowed) in fields.items():
        if name not in config:
            continue
        inner = next((each for each in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(each)), None)
        value = config[name]
        if inner is not None:
            small[name] = cut(value, typing.cast(type, inner))
        elif allowed.smoke and (allowed.null_is_all if value is None else _is_above(value, allowed.smoke)):
            others = [other for other, (_, said) in fields.items() if other == allowed.either or said.either == name]
            small |= {name: allowed.smoke, **dict.fromkeys(others)}
    return schema.cut(small) if hasattr(schema, "cut") else small


def _is_above(value: Any, most: int) -> bool:
    """Also of a number that was given as text; what is no number is refused later."""
    try:
        return float(value) > most
    except (TypeError, ValueError):
        return False


def check_fields(instance: Any) -> None:
    """Raises ConfigError for a declared field of an instance outside its type or range."""
    schema: type = type(instance)
    for name, (hint, allowed) in _fields(schema).items():
        if allowed is not ANY:
            _value(name, getattr(instance, name), hint, allowed, whole=False)


def refuse_strays(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key that no config has, however it came in (`+key=value` included)."""
    for key in given:
        if key not in known:
            close = nearest(str(key), known)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            path = f"{where}.{key}" if where else str(key)
            raise ConfigError(f"unknown key {path}; {hint}known here: {', '.join(known)}.")


@lru_cache(maxsize=256)
def _fields(schema: type) -> dict[str, tuple[Any, Allowed]]:
    """Type and range of each field, in order."""
    hints = typing.get_type_hints(schema, include_extras=True)
    found = ((each.name, hints[each.name]) for each in dataclasses.fields(schema))
    return {name: (typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint, ANY)) for name, hint in found}


def _value(key: str, value: Any, hint: Any, allowed: Allowed, whole: bool) -> Any:
    """The value as its type. Raises ConfigError for one that is not."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        if allowed.names:
            _check_names(key, value, allowed)
        return copy.deepcopy(value)
    optional = origin in (UnionType, typing.Union) and NoneType in arguments
    if optional:
        if value is None:
            return None
        hint = next(each for each in arguments if each is not NoneType)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    or_null = ", or null" if optional else ""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}={value!r} must be a config with {', '.join(_fields(typing.cast(type, hint)))}{or_null}.")
        return typed(key, value, typing.cast(type, hint), whole=whole)
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(f"{key}={value!r} must be a list{or_null}.")
        if allowed.names:
            _check_names(key, value, allowed)
        if len(value) < allowed.least:
            raise ConfigError(f"{key}={value} must have at least {allowed.least} value{'s'[: allowed.least - 1]}{or_null}.")
        made = [_value(f"{key}[{place}]", each, arguments[0], allowed, whole) for place, each in enumerate(value)]
        if allowed.unique and len(set(made)) < len(made):
            reason = f": {allowed.note}" if allowed.note else ""
            raise ConfigError(f"{key}={made} names a value twice{reason}.")
        return made
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}={value!r} must be a mapping of names to values{or_null}.")
        return {str(name): _value(f"{key}.{name}", each, arguments[1], allowed, whole) for name, each in value.items()}
    return _scalar(key, value, hint, allowed, or_null)


def _scalar(key: str, value: Any, kind: type, allowed: Allowed, or_null: str) -> Any:
    """A number, a text, or true or false. A text that is a number counts as one, and the other way round."""
    of_this_kind = type(value) is bool if kind is bool else type(value) in (int, float, str)
    try:
        if not of_this_kind or (kind is int and type(value) is float):
            raise ValueError
        value = kind(value)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except (ValueError, OverflowError):
        bounds = f", {allowed.bounds}" if allowed.bounds else ""
        raise ConfigError(f"{key}={value!r} must be {KINDS[kind]}{bounds}{or_null}.") from None
    if kind in (int, float) and not (allowed.minimum <= value <= allowed.maximum and allowed.above < value < allowed.below):
        reason = f": {allowed.note}" if allowed.note else ""
        bounds = allowed.bounds if abs(value) <= LARGEST and allowed.bounds else f"at most {LARGEST} in size"
        raise ConfigError(f"{key}={value} must be {bounds}{or_null}{reason}.")
    if allowed.choices and value not in allowed.choices:
        raise ConfigError(f"{key}={value!r} is not known; choose one of {', '.join(allowed.choices)}{or_null}.")
    if allowed.filled and not value.strip():
        raise ConfigError(f"{key}={value!r} is empty; give it a text{or_null}.")
    if allowed.path:
        _check_path(key, value, allowed)
    if allowed.holds and value.count(allowed.holds) != 1:
        raise ConfigError(f"{key}={value!r} must hold {allowed.holds} exactly once.")
    return value


def _check_path(key: str, value: str, allowed: Allowed) -> None:
    """Raises ConfigError for what no file system takes, and for a pattern that is none of names below a folder."""
    parts = PurePath(value).parts
    if "\0" in value or len(value.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in parts):
        raise ConfigError(
            f"{key}={brief(value)} is no path: names have at most {LONGEST_NAME} bytes, a path {LONGEST_PATH}, and no NUL."
        )
    if parts[:1] == ("None",) and len(parts) > 1 and not Path("None").exists():  # what null is inside a longer text
        raise ConfigError(
            f"{key}={value} lies in a folder that is not set; set {key}, or what it is made of, such as paths.data=FOLDER or"
            " paths.models=FOLDER."
        )
    if allowed.relative and (PurePath(value).is_absolute() or any("**" in part and part != "**" for part in parts)):
        raise ConfigError(f"{key}={value!r} must be a pattern of file names below a folder, such as *.jsonl or **/*.csv.")


def _check_names(key: str, value: Any, allowed: Allowed) -> None:
    """Raises ConfigError for what is neither null, nor a pattern, nor a list of names."""
    if value is None:
        return
    if isinstance(value, str) and value:
        try:
            re.compile(value)
        except re.error as error:
            raise ConfigError(f"{key}={value} is no pattern ({error}); give one, or a list of names.") from error
    elif not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise ConfigError(f"{key}={value!r} must be a list of names, one pattern that matches whole names, or null.")
    elif not value and allowed.empty:
        raise ConfigError(f"{key}=[] {allowed.empty}")


def _check_together(where: str, name: str, values: Mapping[str, Any], allowed: Allowed) -> None:
    """Raises ConfigError for a field that does not go with another, as it declares."""
    value, other, (needed, advice), (excluding, word) = values[name], allowed.either, allowed.needs, allowed.alone
    if other and (value is None) == (values[other] is None):
        raise ConfigError(
            f"{where}: give {name} or {other}, and null for the other; now {name}={value} and {other}={values[other]}."
        )
    if needed and value is not None and values[needed] is None:
        raise ConfigError(f"{where}.{name}={value!r} needs {where}.{needed}, which is null; {advice}.")
    if allowed.unlike and value is not None and values[allowed.unlike] == value:
        raise ConfigError(f"{where}: {name} and {allowed.unlike} are both {value!r}; give two different ones.")
    if excluding and value is not None and values[excluding] == word:
        raise ConfigError(f"{where}.{excluding}={word} and {where}.{name}={value} exclude each other; give one of the two.")
