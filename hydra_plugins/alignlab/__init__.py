"""Hydra's plug-ins of alignlab, which Hydra takes from `hydra_plugins` only; the code is in alignlab/sweeps. And the configs of
the groups `sizing/*`, made of conf/_sizing.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from alignlab.command_line import CONF, own_configs, shipped
from alignlab.registry import choose
from alignlab.sweeps import local, sweeper

FROM_LAUNCH = {
    "partition": "partition",
    "account": "account",
    "gpus_per_node": "gpus",
    "cpus_per_task": "cpus",
    "mem_gb": "memory_gb",
    "timeout_min": "minutes",
    "signal_delay_s": "signal_seconds",
    "max_num_timeout": "retries",
    "array_parallelism": "parallel",
    "setup": "setup",
    "additional_parameters": "extra",
}
"""Keys of the SLURM launcher that take their value from the config group `launch`; the others are hydra.launcher.KEY=VALUE."""


class OwnConfigs(SearchPathPlugin):
    """Appends the user's own folders of configs to those that Hydra searches."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Behind alignlab's own."""
        for folder in own_configs():
            search_path.append("own configs", f"file://{folder}")


class Planned(sweeper.PlannedSweeper):
    """hydra/sweeper=planned."""


class Local(local.LocalLauncher):
    """hydra/launcher=local, which launch=local chooses."""


OmegaConf.register_new_resolver("choose", choose, replace=True)
OmegaConf.register_new_resolver("shipped", shipped, replace=True)
_store = ConfigStore.instance()
_sweeper = {"_target_": f"{__name__}.Planned", "max_batch_size": None, "params": None}
_store.store(group="hydra/sweeper", name="planned", node=_sweeper, provider="alignlab")
_store.store(group="hydra/launcher", name="local", node={"_target_": f"{__name__}.Local"}, provider="alignlab")

if find_spec("hydra_plugins.hydra_submitit_launcher") is None:

    class Slurm(local.NoSlurm):
        """hydra/launcher=slurm where it is not installed."""

    _slurm = {"_target_": f"{__name__}.Slurm"}
else:
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    from alignlab.sweeps import slurm

    class Slurm(slurm.SlurmLauncher):
        """hydra/launcher=slurm, which launch=slurm chooses."""

    _slurm = OmegaConf.structured(SlurmQueueConf(_target_=f"{__name__}.Slurm", name="alignlab", stderr_to_stdout=True))
    for _key, _source in FROM_LAUNCH.items():
        _slurm[_key] = f"${{launch.{_source}}}"
_store.store(group="hydra/launcher", name="slurm", node=_slurm, provider="alignlab")


def _sizings(table: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Group, name and values of each config of a sizing table."""
    for model, sections in table.items():
        for section in ("tuner", "control", "method"):
            for choice, values in sections.get(section, {}).items():
                name = f"{model}_{choice}"
                of_model = sections.get("model", {}).get(choice, {}) if section == "method" else {}
                given = {key: value for key, value in {section: values, "model": of_model}.items() if value}
                yield f"sizing/{section}", name, given | {"sizing": {section: name}}


_table = (CONF / "_sizing.yaml").read_text(encoding="utf-8")
for _group, _name, _node in _sizings(yaml.load(_table, getattr(yaml, "CSafeLoader", yaml.SafeLoader))):
    _store.store(group=_group, name=_name, node=_node, package="_global_", provider="alignlab")
