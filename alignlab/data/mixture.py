"""Several data sets as one: each record carries the name of its source as its task, and stages draw from each by a weight."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from typing import Annotated, Any, TypeVar

from alignlab.data.config import DataConfig
from alignlab.data.halves import flipped
from alignlab.data.source import LeftOut, Mixing, Source, Split, check_weights
from alignlab.errors import ConfigError, DataError
from alignlab.files import contents, places
from alignlab.registry import cut, number, typed, unknown

T = TypeVar("T")
MEASURED = frozenset({"label set", "references", "oracle"})
"""Capabilities that the test rows have, and that no stage reads."""
NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass
class MixtureConfig(DataConfig):
    """`sources`: configs of the data group by name, which is the task of their records: +data@data.sources.NAME=CHOICE. A
    source's own max_tokens, too_long, limits and flipped hold for its records, the mixture's for all. `weights`: the share that
    a stage draws from each, any positive numbers; null = by the number of rows, a source counting as at most `cap`. `tested`:
    the source whose rows are those of every split but the training one, and whose labels are asked for; null = all of them.
    """

    sources: dict[str, Any]
    weights: Annotated[dict[str, float] | None, number(above=0)]
    cap: Annotated[int | None, number(minimum=1)]
    tested: str | None

    def check(self, where: str) -> None:
        """Raises ConfigError for sources that are not data configs, weights that do not fit them, and keys that only the
        mixture takes."""
        del where
        if not self.sources:
            raise ConfigError("data.sources is empty; add data sets by name: +data@data.sources.NAME=toy.")
        if self.limit is not None or self.test_limit is not None:
            raise ConfigError("data.limit and data.test_limit belong to the sources; set data.sources.NAME.limit instead.")
        for name, source in self.tasks().items():
            if not NAME.fullmatch(name):
                raise ConfigError(f"data.sources: {name!r} is no name for a task; use letters, digits, '.', '_' and '-'.")
            if isinstance(source, MixtureConfig):
                raise ConfigError(f"data.sources.{name} is a mixture itself; name its sources beside the others.")
            if source.halves is not None or source.part is not None:
                raise ConfigError(f"data.sources.{name}: halves and part are made of the whole; set data.halves and data.part.")
            typed(f"data.sources.{name}", self.sources[name], type(source))
        if self.tested is not None and self.tested not in self.sources:
            raise ConfigError(unknown("source in data.tested", self.tested, self.sources))
        if self.weights is not None:
            check_weights("data.weights", self.weights, self.sources)
            missing = [name for name in self.sources if name not in self.weights]
            if missing:
                raise ConfigError(f"data.weights has none for {', '.join(missing)}; give every source one, or null for all.")
            if self.cap is not None:
                raise ConfigError("data.cap bounds what is mixed by size, and data.weights says the shares; give one of them.")

    @staticmethod
    def cut(config: Mapping[str, Any]) -> dict[str, Any]:
        """Of scale=smoke: the rows of each source, which the mixture itself does not limit."""
        from alignlab.data import SOURCES

        sources = dict(config.get("sources") or {})
        for name, source in sources.items():
            if isinstance(source, Mapping) and "name" in source:
                sources[name] = cut(source, SOURCES[str(source["name"])].config)
        return {**config, "limit": None, "test_limit": None, "sources": sources}

    @property
    def from_hub(self) -> bool:
        """Where any source is."""
        return any(config.from_hub for config in self.tasks().values())

    def tasks(self) -> Mapping[str, DataConfig]:
        """Each source's config. Raises ConfigError for one that is not a config of the data group."""
        from alignlab.data import SOURCES

        found: dict[str, DataConfig] = {}
        for name, config in self.sources.items():
            if not isinstance(config, Mapping) or "name" not in config:
                raise ConfigError(f"data.sources.{name} is no config; add one with +data@data.sources.{name}=toy.")
            found[name] = typed(f"data.sources.{name}", config, SOURCES[str(config["name"])].config, whole=False)
        return found

    def cache_key(self) -> list[str]:
        """Each source without the places of its files, and the content of those."""
        found: list[str] = []
        for name, source in self.tasks().items():
            kept = {key: value for key, value in self.sources[name].items() if key not in places(source)}
            found += [name, json.dumps(kept, sort_keys=True), *contents(source)]
        return found

    def places(self) -> tuple[str, ...]:
        """The sources name the places of their files."""
        return ("sources",)

    def counted(self, split: str) -> int | None:
        """Of all sources together."""
        counts = [source.expected(split) for source in self.tasks().values()]
        return None if None in counts else sum(count for count in counts if count is not None)


def build(config: MixtureConfig) -> Source:
    """The sources as one, with the splits that all of them have."""
    from alignlab.data import SOURCES

    configs = config.tasks()
    sources = {name: SOURCES[config.name].build(config) for name, config in configs.items()}
    named = [name for name in next(iter(sources.values())).readers if all(name in each.readers for each in sources.values())]
    shares = {name: config.flipped for name, config in configs.items()}
    tested = sources if config.tested is None else {config.tested: sources[config.tested]}
    judges = {source.judge for source in tested.values()}
    return Source(
        config.name,
        {name: partial(_merged, sources if name == "train" else tested, name, shares) for name in named},
        judge=judges.pop() if len(judges) == 1 else None,
        evaluation_prompts=lambda: list(dict.fromkeys(in_turn([source.prompts() for source in tested.values()]))),
        labels=None if config.tested is None else tested[config.tested].labels,
        mixing=Mixing(tuple(sources), config.weights, config.cap),
        drops=all(source.drops for source in sources.values()),
    )


def offers(config: MixtureConfig) -> frozenset[str]:
    """The capabilities that all sources provide, and what can be measured on the tested one."""
    from alignlab.data import SOURCES

    provided = {name: SOURCES[source.name].provides(source) for name, source in config.tasks().items()}
    of_all = frozenset.intersection(*provided.values())
    return of_all - MEASURED | provided[config.tested] & MEASURED if config.tested else of_all


def in_turn(lists: Sequence[Sequence[T]]) -> list[T]:
    """One of each, again and again, so that a beginning holds as much of each as there is."""
    nothing = object()
    every: Iterable[Any] = chain.from_iterable(zip_longest(*lists, fillvalue=nothing))
    return [each for each in every if each is not nothing]


def _merged(sources: Mapping[str, Source], split: str, flips: Mapping[str, float]) -> Split:
    read = {name: source.split(split) for name, source in sources.items()}
    for name, part in read.items():
        if not part.records:
            raise DataError(f"source {name} has no rows in split {split}; look at its files, or leave it out of the mixture.")
        if split == "train" and flips[name]:
            read[name] = flipped(part, flips[name])
    records = [
        [replace(record, row=f"{name}/{record.row}", task=name) for record in part.records] for name, part in read.items()
    ]
    lost = tuple(LeftOut(f"{name}/{each.row}", f"{name}: {each.reason}") for name, part in read.items() for each in part.lost)
    notes = {f"{name}: {note}": count for name, part in read.items() for note, count in part.notes.items()}
    return Split(tuple(in_turn(records)), lost, rows=sum(part.read for part in read.values()), notes=notes)
