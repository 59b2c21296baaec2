"""The door through which Hydra finds our plug-ins: it takes none from outside `hydra_plugins`. They live in alignlab/sweeps."""

from __future__ import annotations

from importlib.util import find_spec

from hydra.core.config_store import ConfigStore

from alignlab.sweeps import local, sweeper


class Planned(sweeper.PlannedSweeper):
    """hydra/sweeper=planned."""


class Local(local.LocalLauncher):
    """hydra/launcher=local, which launch=local chooses."""


_store = ConfigStore.instance()
_sweeper = {"_target_": f"{__name__}.Planned", "max_batch_size": None, "params": None}
_store.store(group="hydra/sweeper", name="planned", node=_sweeper, provider="alignlab")
_store.store(group="hydra/launcher", name="local", node={"_target_": f"{__name__}.Local"}, provider="alignlab")

if find_spec("hydra_plugins.hydra_submitit_launcher") is None:

    class Slurm(local.NoSlurm):
        """hydra/launcher=slurm where it is not installed."""

    _slurm = {"_target_": f"{__name__}.Slurm"}
else:
    from alignlab.sweeps import slurm

    class Slurm(slurm.SlurmLauncher):
        """hydra/launcher=slurm, which launch=slurm chooses."""

    _slurm = slurm.settings(f"{__name__}.Slurm")
_store.store(group="hydra/launcher", name="slurm", node=_slurm, provider="alignlab")
