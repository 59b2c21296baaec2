"""The project's own configs, composed by Hydra: what the tests of sweeps compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from alignlab.config import RunConfig, folder_of, parse
from alignlab.errors import DivergedError
from alignlab.files import code_version
from alignlab.sweeps.jobs import Composer
from alignlab.tracking.ledger import Ledger

ROOT = Path(__file__).parents[3]
EXPERIMENTS = ROOT / "experiments"


def load(words: list[str]) -> DictConfig:
    """One job as Hydra composes it, from nothing."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("run", words)


def choices(group: str) -> list[str]:
    """The configs of a group, and the folders in it."""
    return [path.stem for path in (ROOT / "conf" / group).glob("*")]


def composer() -> Composer:
    """A new one, over the project's configs."""
    return Composer(load, choices)


def config_of(*words: str) -> RunConfig:
    """One job, typed."""
    return parse(load(list(words)))


def finish(config: RunConfig) -> None:
    """Leaves in the run folder what a run leaves that is done."""
    ledger = Ledger(folder_of(config))
    ledger.write("config.json", {"fingerprint": config.fingerprint, "seed": config.seed})
    ledger.write("report.json", {"headline": None})
    ledger.write("env.json", {"code": code_version()})
    ledger.status("done")


class Task:
    """Stands for the run of a job: takes note of it, and leaves it done, or fails where the learning rate is `too_high`."""

    def __init__(self, too_high: float | None = None) -> None:
        self.started: list[RunConfig] = []
        self._too_high = too_high

    def __call__(self, raw: DictConfig) -> None:
        config = parse(raw)
        self.started.append(config)
        if self._too_high is not None and config.method.fit.learning_rate >= self._too_high:
            raise DivergedError(f"the loss is nan at {config.method.fit.learning_rate}.")
        finish(config)


def sweep(task: Callable[[DictConfig], Any], *words: str) -> Any:
    """`python run.py -m WORDS` in this process."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        return hydra.multirun("run", task, list(words), with_log_configuration=False)
