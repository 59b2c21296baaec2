"""What the configs of all methods have in common."""

from __future__ import annotations

from typing import Any

from alignlab.errors import ConfigError
from alignlab.training.config import FitConfig


class MethodConfig:
    """What the config of a method says before torch is there; its dataclass adds the fields."""

    def fits(self) -> dict[str, FitConfig]:
        """The stages that train, in order."""
        return {}

    def cache_key(self) -> list[str]:
        """What tells apart the files that a method reads; most read none."""
        return []

    def reads(self, stage: str) -> tuple[str, int]:
        """Of a stage that trains: the split whose records it reads, and how many groups it makes of each. For estimates."""
        del stage
        return "train", 1

    def shared(self) -> dict[str, Any]:
        """The first of them that several jobs may have in common, each with what it reads of this config."""
        return {}


def between(key: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(f"{key}={value} must lie between {low:g} and {high:g}.")


def one_of(key: str, value: str, known: list[str]) -> None:
    """Raises ConfigError for a word that is not in the list."""
    if value not in known:
        raise ConfigError(f"{key}={value!r} is not known; choose one of {', '.join(known)}.")
