"""The configs of the `tracking` group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from alignlab.registry import number, one_of


@dataclass
class OffConfig:
    """No tracker; the ledger is always written."""

    name: str


@dataclass
class WandbConfig:
    """`mode`: auto (online when logged in, else offline) | online | offline | disabled. `group`: null = the sweep's
    name, or the run's. `timeout_seconds`: how long the start and the end of a run may each wait for the server."""

    name: str
    project: str
    entity: str | None
    mode: Annotated[str, one_of("auto", "online", "offline", "disabled")]
    group: str | None
    timeout_seconds: Annotated[float, number(above=0)]
