"""Data sets as named splits of records, with the capabilities that they provide to methods and suites."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from alignlab.errors import ConfigError, DataError
from alignlab.records import EncodedGroup, LabelSet, Record
from alignlab.registry import unknown


@dataclass(frozen=True)
class Origin:
    """Where a split was read: its files, those passed over (each with the reason), and the columns used and not used."""

    files: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    used: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def sentence(self) -> str:
        """One line for the plan."""
        said = {"from": self.files, "columns": self.used, "columns not used": self.unused, "passed over": self.passed_over}
        return "; ".join(f"{what} {', '.join(listed)}" for what, listed in said.items() if listed)


@dataclass(frozen=True)
class LeftOut:
    """A row that is not used: its name, of files FILE:NUMBER, and why."""

    row: str
    reason: str


@dataclass(frozen=True)
class Split:
    """Records, and the rows that were left out while reading. `rows`: how many were read, where a row may give several records.
    `notes`: what was changed in rows that are kept, or is remarkable -> how many. `origin`: of files."""

    records: tuple[Record, ...]
    lost: tuple[LeftOut, ...] = ()
    rows: int | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    origin: Origin | None = None

    @property
    def read(self) -> int:
        """How many rows were read, those left out included."""
        return len(self.records) + len(self.lost) if self.rows is None else self.rows

    @property
    def left_out(self) -> dict[str, int]:
        """How many rows were left out, by reason."""
        return counted(self.lost)


def counted(lost: Iterable[LeftOut]) -> dict[str, int]:
    """Reason -> how many rows, in the order in which they are given."""
    return dict(Counter(each.reason for each in lost))


class Verdict(Protocol):
    """The scores that an exact oracle gives a response."""

    @property
    def reward(self) -> float:
        """The quantity that training should raise, such as cheerfulness, in [-1, 1]."""

    @property
    def capability(self) -> float:
        """How well the response does what the prompt asked for, in [0, 1]."""

    @property
    def consistency(self) -> float:
        """How far the response keeps to one sign of the reward, in [0, 1]."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """Further properties by name, as in the data's responses."""


Judge = Callable[[str, str], Verdict]
"""(prompt, response) -> verdict, exact and without randomness."""


@dataclass(frozen=True)
class Mixing:
    """How a stage draws from several sources. `weights`: the share of each; None = by its rows, at most `cap` of them."""

    names: tuple[str, ...]
    weights: Mapping[str, float] | None
    cap: int | None


@dataclass(frozen=True)
class Source:
    """A data set. Splits are read when they are asked for, once. `evaluation_prompts`: evaluation prompts other than the test
    split's. `labels`: the classes that its texts can have, where that is a closed set, or a number; may read the training
    split. `mixing`: of a mixture, whose records have tasks. `drops`: rows that the tokenizer or a chat template cannot take are
    left out and counted, and no error."""

    name: str
    readers: Mapping[str, Callable[[], Split]]
    judge: Judge | None = None
    evaluation_prompts: Callable[[], list[str]] | None = None
    labels: Callable[[], LabelSet] | None = None
    mixing: Mixing | None = None
    drops: bool = True
    _read: dict[str, Split] = field(default_factory=dict, compare=False)

    def split(self, name: str) -> Split:
        """The records of one split; raises ConfigError for a split this data set does not have."""
        if name not in self.readers:
            raise ConfigError(f"data={self.name} has no split {name!r}; it has {', '.join(self.readers)}.")
        if name not in self._read:
            self._read[name] = self.readers[name]()
        return self._read[name]

    def prompts(self) -> list[str]:
        """The prompts to sample answers for: the data set's own list, or those of the test split, each once."""
        if self.evaluation_prompts is not None:
            return self.evaluation_prompts()
        return list(dict.fromkeys(record.prompt for record in self.split("test").records))


def drawn_from(source: Source, split: str, wanted: Mapping[str, float] | Sequence[str] | None) -> tuple[Split, Mixing | None]:
    """A split, and how a stage draws from it. `wanted`: some of a mixture's sources, with their weights, or by name alone to be
    weighed as the data's config says; None = all of them. Raises ConfigError for an unknown source and for a weight that is not
    a positive number."""
    whole = source.split(split)
    if wanted is None:
        return whole, source.mixing
    known = source.mixing.names if source.mixing else ()
    own = wanted if isinstance(wanted, Mapping) else None
    check_weights("the stage's sources", own or dict.fromkeys(wanted, 1.0), known)
    others = {*known} - {*wanted}
    lost = tuple(each for each in whole.lost if each.reason.partition(":")[0] not in others)
    records = tuple(record for record in whole.records if record.task in wanted)
    notes = {note: count for note, count in whole.notes.items() if note.partition(":")[0] not in others}
    if own is not None or source.mixing is None:
        return Split(records, lost, notes=notes), Mixing(tuple(wanted), own, None)
    of_data = source.mixing.weights and {name: source.mixing.weights[name] for name in wanted}
    return Split(records, lost, notes=notes), replace(source.mixing, names=tuple(wanted), weights=of_data)


def shares(groups: Sequence[EncodedGroup], mixing: Mixing | None) -> dict[str, float] | None:
    """The share of each source among the groups that a stage draws; they add up to 1. None where there is one source.

    Raises DataError for a source of which no group is left.
    """
    if mixing is None:
        return None
    counts = Counter(group.task for group in groups)
    for name in mixing.names:
        if not counts[name]:
            raise DataError(f"source {name} has no row left to train on; give it more data, or leave it out of the mixture.")
    by_size = {name: float(min(counts[name], mixing.cap or counts[name])) for name in mixing.names}
    weights = by_size if mixing.weights is None else mixing.weights
    total = math.fsum(weights.values())
    return {name: weights[name] / total for name in mixing.names}


def check_weights(where: str, weights: Mapping[str, float], known: Iterable[str]) -> None:
    """Raises ConfigError for an unknown source and for a weight that is not positive."""
    if not weights:
        raise ConfigError(f"{where}: no source is named; known are {', '.join(known) or 'none'}.")
    for name, weight in weights.items():
        if name not in known:
            raise ConfigError(unknown(f"source in {where}", name, known))
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"{where}: the weight {weight} of {name} must be a finite number above 0.")
