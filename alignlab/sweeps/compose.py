"""Many configs that differ in a few values, composed fast: Hydra once per set of choices, the values on top."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

Load = Callable[[list[str]], DictConfig]
"""Composes one job from the words of its command line."""
Choices = Callable[[str], Sequence[str]]
"""The configs of a config group and the folders in it; none for a key that is not a group."""
_NAME = re.compile(r"[^\s${}\[\]():,'\"]+")
"""Between the signs that interpolations are written with: a key, a part of one, or a word that is no key at all."""


class Composer:
    """Composes the jobs of a sweep one after the other.

    Hydra lays values over the configs at the very end, so jobs that choose the same configs and set the same keys differ in
    nothing but those values, and one composed config can serve them all in turn. Resolving is what then takes the time, so that
    is done once, too, where no other key takes its value from one that the jobs set.
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
            composed = self._composed(words)
            config = self._bases[same] = _resolved(composed, [value.key_or_group for value in values.values()])
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
        """The word as a value that replaces another as a whole; None for a choice of a config, an added key, a merged value."""
        override = _parsed(word)
        replaces = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
        key = override.key_or_group
        if not replaces or isinstance(override.value(), dict) or key.startswith("hydra.") or self._choices(key):
            return None
        return override


def _resolved(config: DictConfig, keys: Collection[str]) -> DictConfig:
    """The same with every value in its place, unless one is taken from any of `keys`, or from nowhere."""
    texts = [text for text in _texts(OmegaConf.to_container(config)) if "${" in text]
    read = {name for text in texts for name in _NAME.findall(text)}
    anywhere = any("${." in text or "${${" in text for text in texts)
    if anywhere or any(_one_in_the_other(key, name) for name in read for key in keys):
        return config
    resolved = copy.deepcopy(config)
    try:
        OmegaConf.resolve(resolved)
    except OmegaConfBaseException:  # `parse` says what is wrong
        return config
    return resolved


def _one_in_the_other(key: str, other: str) -> bool:
    """Whether two keys are the same, or one is a part of the other's value."""
    key, other = (f"{name.strip('.')}." for name in (key, other))
    return key.startswith(other) or other.startswith(key)


def _texts(plain: Any) -> Iterator[str]:
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, (dict, list)):
        for inner in plain.values() if isinstance(plain, dict) else plain:
            yield from _texts(inner)


@lru_cache(maxsize=4096)
def _parsed(word: str) -> Any:
    return OverridesParser.create().parse_override(word)
