"""The configs of the `tracking` group."""

from __future__ import annotations

from dataclasses import dataclass

from alignlab.errors import ConfigError


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
    mode: str
    group: str | None
    timeout_seconds: float

    def check(self) -> None:
        """Raises ConfigError for a mode that does not exist and for no time to wait."""
        if self.mode not in ("auto", "online", "offline", "disabled"):
            raise ConfigError(f"tracking.mode={self.mode!r} is not known; choose auto, online, offline or disabled.")
        if self.timeout_seconds <= 0:
            raise ConfigError(f"tracking.timeout_seconds={self.timeout_seconds} must be above 0.")
