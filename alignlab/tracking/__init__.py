"""The ledger, always, and trackers beside it."""

from __future__ import annotations

from alignlab.registry import Entry, Registry
from alignlab.tracking.config import OffConfig, WandbConfig
from alignlab.tracking.tracker import Identity, NoTracker, Tracker


def _off(_config: OffConfig, _identity: Identity) -> Tracker:
    return NoTracker()


def _wandb(config: WandbConfig, identity: Identity) -> Tracker:
    from alignlab.tracking.weights_and_biases import open_run

    return open_run(config, identity)


__all__ = ["TRACKERS", "Identity", "Tracker"]

TRACKERS = Registry("tracking", {"off": Entry(OffConfig, _off), "wandb": Entry(WandbConfig, _wandb)})
