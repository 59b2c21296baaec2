"""TPT (2023.findings-emnlp.584): prompts put together token by token from a bank that several tasks share.

Stages: `prompt` (A), a task prompt alone on one task; `bank` (B), the bank alone on several source tasks; `target` (C), bank
and task prompt on the task that is tested, or the task prompt beside a frozen bank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import compress, product
from typing import TYPE_CHECKING, Annotated, Any

from alignlab.data.encode import Liked
from alignlab.errors import ConfigError
from alignlab.methods.config import MethodConfig
from alignlab.registry import Entry, capabilities, number, one_of
from alignlab.training.config import FitConfig

if TYPE_CHECKING:
    from alignlab.training.stages import Method, Stage
    from alignlab.training.trainable import Trains

STAGES = ("prompt", "bank", "target")
ORDERS = [list(compress(STAGES, wanted)) for wanted in product((True, False), repeat=len(STAGES)) if any(wanted)]


@dataclass
class TptConfig(MethodConfig):
    """`stages`: some of prompt, bank and target, in this order. `sources`: tasks of a mixture that the bank is trained on, null
    = all of the data. `bank_by`: mixed (all sources train the bank together) | source (each trains a prompt of its own, one
    stage each, for tuners that take prompts whole). `prompt_task`, `target_task`: the tasks of those stages, null = all of the
    data. `joint`: whether the target trains the bank too. `counted_rows`: behind bank and target, so many texts of each task
    are asked which vectors they choose; 0: none."""

    name: str
    stages: list[str]
    sources: list[str] | None
    bank_by: Annotated[str, one_of("mixed", "source")]
    prompt_task: str | None
    target_task: str | None
    joint: bool
    counted_rows: Annotated[int, number(minimum=0)]
    prompt: FitConfig
    bank: FitConfig
    target: FitConfig

    def check(self, where: str) -> None:
        """Raises ConfigError for another list of stages, a source that is named twice, and prompts of sources without names."""
        if self.stages not in ORDERS:
            raise ConfigError(
                f"{where}.stages={self.stages} must be some of prompt, bank and target, in this order, each once."
            )
        twice = [name for name in self.sources or () if (self.sources or []).count(name) > 1]
        if twice:
            raise ConfigError(f"{where}.sources names {twice[0]} twice; give every task a name of its own.")
        if self.sources == [] or (self.bank_by == "source" and not self.sources):
            raise ConfigError(
                f"{where}.sources={self.sources} must name the tasks of the bank, or be null for all of the data with"
                f" {where}.bank_by=mixed."
            )

    def fits(self) -> dict[str, FitConfig]:
        """The stages that train, in order; one for each source where each trains its own prompt."""
        return {name: fit for stage in self.stages for name, fit in self._fits_of(stage).items()}

    def _fits_of(self, stage: str) -> dict[str, FitConfig]:
        fit: FitConfig = getattr(self, stage)
        if stage != "bank" or self.bank_by == "mixed":
            return {stage: fit}
        assert self.sources is not None
        steps = None if fit.steps is None else max(1, fit.steps // len(self.sources))
        return {f"bank-{name}": replace(fit, steps=steps) for name in self.sources}

    def shared(self) -> dict[str, Any]:
        """The stages before the target, which read nothing of it."""
        before = [stage for stage in self.stages if stage != "target"]
        tasks = {"prompt": self.prompt_task, "bank": self.sources}
        return {name: [fit, tasks[stage]] for stage in before for name, fit in self._fits_of(stage).items()}


def build(config: TptConfig) -> Method:
    """The stages that are wanted, each on its tasks, and the histogram of what was chosen."""
    from alignlab.methods.tpt.selection import SelectionStage
    from alignlab.training.objectives import nll
    from alignlab.training.stages import Method, TrainStage
    from alignlab.training.trainable import THE_TUNER, TUNER, PartSettings

    view = Liked(None)
    frozen = {TUNER: PartSettings(learning_rate=0.0), f"{TUNER}.task": PartSettings()}
    prompt: Trains = {f"{TUNER}.task": PartSettings()}
    target: Trains = THE_TUNER if config.joint else frozen
    tasks: Mapping[str, tuple[str, ...] | None] = {
        "prompt": None if config.prompt_task is None else (config.prompt_task,),
        "bank": None if config.sources is None else tuple(config.sources),
        "target": None if config.target_task is None else (config.target_task,),
    }
    stages: list[Stage] = []
    trains: Trains
    sources: tuple[str, ...] | None
    for name, fit in config.fits().items():
        of_source = name.partition("-")[2]
        if of_source:
            place = (config.sources or []).index(of_source)
            trains, sources = {f"{TUNER}.prompt{place}": PartSettings()}, (of_source,)
        else:
            trains = {"prompt": prompt, "bank": {f"{TUNER}.bank": PartSettings()}, "target": target}[name]
            sources = tasks[name]
        stages.append(TrainStage(name, "train", view, nll, fit, trains=trains, sources=sources))
        if config.counted_rows and name in ("bank", "target"):
            of_stage = sources if name == "bank" else None
            stages.append(SelectionStage(f"{name}-selection", view, config.counted_rows, of_stage))
    return Method(config.name, tuple(stages))


def _requires(config: TptConfig) -> frozenset[str]:
    """A target stage needs a bank that an earlier stage has made, or one that was saved."""
    known = "bank" in config.stages or "target" not in config.stages
    return frozenset({"chosen", "token bank"} if known else {"chosen", "token bank", "trained bank"})


ENTRY = Entry(TptConfig, build, requires=_requires, provides=capabilities("training"))
