"""The door through which Hydra finds our plug-ins: it takes none from outside `hydra_plugins`. They live in alignlab/sweeps."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from alignlab.sweeps import local, sweeper


class Planned(sweeper.PlannedSweeper):
    """hydra/sweeper=planned."""


class Shared(local.LocalLauncher):
    """hydra/launcher=shared."""


_store = ConfigStore.instance()
_sweeper = {"_target_": f"{__name__}.Planned", "max_batch_size": None, "params": None}
_store.store(group="hydra/sweeper", name="planned", node=_sweeper, provider="alignlab")
_store.store(group="hydra/launcher", name="shared", node={"_target_": f"{__name__}.Shared"}, provider="alignlab")
