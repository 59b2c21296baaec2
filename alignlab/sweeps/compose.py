"""Many configs that differ in a few values, composed fast: Hydra once per set of choices, the values on top."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

Load = Callable[[list[str]], DictConfig]
"""Composes one job from the words of its command line."""
Choices = Callable[[str], Sequence[str]]
"""The sheets of a config group and the folders in it; none for a key that is not a group."""


class Composer:
    """Composes the jobs of a sweep one after the other.

    Hydra lays values over the sheets at the very end, so jobs that choose the same sheets and set the same keys differ in
    nothing but those values, and one composed config can serve them all in turn.
    """

    def __init__(self, load: Load, choices: Choices) -> None:
        self._load = load
        self._choices = lru_cache(maxsize=None)(choices)
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, words: Sequence[str]) -> DictConfig:
        """The config of one job; it holds until the next call. Raises what Hydra raises."""
        values = {word: override for word in words if (override := self._plain_value(word)) is not None}
        same = tuple(values[word].key_or_group if word in values else word for word in words)
        config = self._bases.get(same)
        if config is None:
            config = self._bases[same] = self._composed(words)
            return config
        try:
            for override in values.values():
                OmegaConf.update(config, override.key_or_group, override.value())
        except OmegaConfBaseException:  # Hydra says what is wrong, in words that `command_line` knows
            del self._bases[same]
            return self._composed(words)
        return config

    def _composed(self, words: Sequence[str]) -> DictConfig:
        config = self._load(list(words))
        with open_dict(config):
            config.pop("hydra", None)
        return config

    def _plain_value(self, word: str) -> Override | None:
        """The word as a value that replaces another as a whole; None for a choice of a sheet, an added key, a merged value."""
        override = _parsed(word)
        replaces = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
        key = override.key_or_group
        if not replaces or isinstance(override.value(), dict) or key.startswith("hydra.") or self._choices(key):
            return None
        return override


@lru_cache(maxsize=4096)
def _parsed(word: str) -> Any:
    return OverridesParser.create().parse_override(word)
