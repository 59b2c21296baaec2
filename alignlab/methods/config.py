"""What the sheets of all methods have in common."""

from __future__ import annotations

from alignlab.errors import ConfigError


def between(key: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(f"{key}={value} must lie between {low:g} and {high:g}.")


def one_of(key: str, value: str, known: list[str]) -> None:
    """Raises ConfigError for a word that is not in the list."""
    if value not in known:
        raise ConfigError(f"{key}={value!r} is not known; choose one of {', '.join(known)}.")
