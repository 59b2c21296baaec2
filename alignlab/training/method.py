"""What a method is: an ordered list of stages over one tuner, starting from pretrained or from new weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from alignlab.data.encode import Account, Limits
    from alignlab.data.source import Source
    from alignlab.models.config import Shape
    from alignlab.models.policy import Policy
    from alignlab.models.text import Codec
    from alignlab.records import EncodedGroup
    from alignlab.training.config import TrainerConfig
    from alignlab.training.parts import Trains
    from alignlab.training.session import Session


@dataclass(frozen=True)
class Work:
    """What a stage is about to do: the rows it will see, their account, its optimiser steps and what else is worth saying.
    `weights`: the share that it draws from each of several sources."""

    groups: Sequence[EncodedGroup]
    account: Account
    steps: int
    note: str
    weights: Mapping[str, float] | None = None


class Stage(Protocol):
    """A unit of work with a name. It learns, or it looks."""

    @property
    def name(self) -> str:
        """Unique within the method; also its folder and the first half of its metrics' names."""

    @property
    def trains(self) -> Trains:
        """The parts that it trains, by name; none where it only looks."""

    @property
    def stays(self) -> bool:
        """Whether the finished policy needs what it leaves; the others serve the stages behind them only."""

    def validated(self, trainer: TrainerConfig) -> bool:
        """Whether it is measured while it trains."""

    def prepare(self, source: Source, codec: Codec, limits: Limits) -> Work:
        """Reads and encodes its rows; no weights yet."""

    def check(self, work: Work, trainer: TrainerConfig, shape: Shape) -> None:
        """Raises ConfigError where the machine's config, or the backbone's shape, does not fit this work; no weights yet."""

    def run(self, policy: Policy, work: Work, session: Session) -> None:
        """Does the work, from the last checkpoint if there is one."""

    def restore(self, policy: Policy, folder: Path) -> None:
        """Puts back what an earlier, finished run of this stage left in its folder."""


@dataclass(frozen=True)
class Method:
    """`start`: pretrained | random weights."""

    name: str
    stages: tuple[Stage, ...]
    start: str = "pretrained"
