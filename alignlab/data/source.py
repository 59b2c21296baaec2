"""What every data set is once it is read: named splits of records, and the words it offers to methods and suites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from alignlab.errors import ConfigError
from alignlab.records import LabelSet, Record


@dataclass(frozen=True)
class Split:
    """Records, and how many were left out while reading, by reason."""

    records: tuple[Record, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


class Verdict(Protocol):
    """What an exact oracle says of a response."""

    @property
    def reward(self) -> float:
        """How much the response has of what is to be aligned, in [-1, 1]."""

    @property
    def capability(self) -> float:
        """How well the response does what the prompt asked for, in [0, 1]."""

    @property
    def consistency(self) -> float:
        """How far the response keeps to one side of what is to be aligned, in [0, 1]."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """What else can be named of it, as in the data's responses."""


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
    split's.
    `labels`: what its texts can be told to be, where that is a closed set, or a number; may read the training split. `mixing`:
    of a mixture, whose records have tasks."""

    name: str
    readers: Mapping[str, Callable[[], Split]]
    judge: Judge | None = None
    evaluation_prompts: Callable[[], list[str]] | None = None
    labels: Callable[[], LabelSet] | None = None
    mixing: Mixing | None = None
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
