"""Literal tables of what can be chosen, and the sentence for a name that is not in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from alignlab.errors import ConfigError

Capabilities = Callable[[Any], frozenset[str]]
"""From a choice's own config to the capabilities that it requires, or provides."""


def capabilities(*fixed: str) -> Capabilities:
    """The same capabilities whatever the config says."""
    return lambda _config: frozenset(fixed)


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


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that look most like the given one, best first."""
    return get_close_matches(name, list(known), n=count, cutoff=0.5)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not known: what was given, the nearest names, all names."""
    names = sorted(known)
    close = nearest(name, names)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown {kind} {name!r}; {hint}known: {', '.join(names)}."
