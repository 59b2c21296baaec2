"""Methods that learn a control per class by the likelihood of each response under its class: MEET and Chain of Hindsight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from alignlab.errors import ConfigError
from alignlab.methods.config import MethodConfig
from alignlab.registry import Entry, capabilities, number
from alignlab.training.config import FitConfig

if TYPE_CHECKING:
    from alignlab.training.stages import Method

STAGES = ["controls", "joint"]
LIKELIHOOD = ("token likelihood", "text in front of prompts")
"""What a control is learned by, and where it stands."""


@dataclass
class JointConfig(MethodConfig):
    """`joint`: the backbone, trained in full with the control in it. `control_rate`: the control's own learning rate there;
    null leaves the control as it is."""

    name: str
    joint: FitConfig
    control_rate: Annotated[float | None, number(above=0, below=10)]

    def fits(self) -> dict[str, FitConfig]:
        return {"joint": self.joint}

    def reads(self, stage: str) -> tuple[str, int]:
        """Both sides of a pair, each under its class."""
        return "train", 2


@dataclass
class MeetConfig(JointConfig):
    """`stages`: both, in this order, or one of them, an ablation, which then takes over the other's steps."""

    stages: list[str]
    controls: FitConfig

    def check(self, where: str) -> None:
        """Raises ConfigError for another list of stages, and for batches of two sizes."""
        del where
        if self.stages not in (STAGES, STAGES[:1], STAGES[1:]):
            raise ConfigError(f"method.stages={self.stages} must be [controls,joint], [controls] or [joint].")
        if self.controls.batch != self.joint.batch:
            raise ConfigError(
                f"method.controls.batch={self.controls.batch} and method.joint.batch={self.joint.batch} must be the same: both"
                " stages take their steps from one stream of batches."
            )

    def fits(self) -> dict[str, FitConfig]:
        """Both stages, also where only one is trained: it takes over the other's steps."""
        return {"controls": self.controls, "joint": self.joint}

    def shared(self) -> dict[str, Any]:
        """`controls`, which does not read the rates of `joint`; its batches do come from one stream of both."""
        return {"controls": [self.controls, self.joint.length]} if self.stages == STAGES else {}


def meet(config: MeetConfig) -> Method:
    """MEET (arXiv 2310.00819): `controls`, the control of each class fitted on the responses of that class with the backbone
    frozen (step 1); then `joint`, every weight of the backbone together with the controls, by the same likelihood (step 2)."""
    return _method(config, config.fits(), config.stages)


def coh(config: JointConfig) -> Method:
    """Chain of Hindsight (arXiv 2302.02676) without chains: `joint` alone, from the start, with any control. Its schedule has
    two halves: as many steps as MEET's two stages, and the same batches."""
    fit = config.joint
    halves = (None, None) if fit.steps is None else (fit.steps - fit.steps // 2, fit.steps // 2)
    epochs = None if fit.epochs is None else fit.epochs / 2
    first, second = (replace(fit, epochs=epochs, steps=steps) for steps in halves)
    return _method(config, {"joint": first, "second half": second}, ["joint"])


def _method(config: JointConfig, fits: Mapping[str, FitConfig], wanted: Sequence[str]) -> Method:
    """The wanted stages on one stream of batches, as long as all of `fits` together. A single stage takes all its steps, so
    MEET's ablations train for equal steps on equal data."""
    from alignlab.data.classes import LABELLED
    from alignlab.data.encode import labelled
    from alignlab.training.objectives import nll
    from alignlab.training.stages import Method, ScheduleSplit, TrainStage
    from alignlab.training.trainable import THE_BACKBONE, THE_TUNER, PartSettings, Trains

    control = PartSettings(learning_rate=config.control_rate or 0.0, weight_decay=0.0)
    trains: dict[str, Trains] = {"controls": THE_TUNER, "joint": {**THE_BACKBONE, "tuner": control}}
    lengths = tuple(fit.length for fit in fits.values())
    ranges = [(0, len(lengths))] if len(wanted) == 1 else [(number, number + 1) for number in range(len(lengths))]
    stages = [
        TrainStage(
            name,
            LABELLED["train"],
            labelled,
            nll,
            fits[name],
            trains=trains[name],
            schedule_split=ScheduleSplit(lengths, first, end),
        )
        for name, (first, end) in zip(wanted, ranges, strict=True)
    ]
    return Method(config.name, tuple(stages))


LEARNS = capabilities("training", "labelled training")
MEET = Entry(MeetConfig, meet, requires=capabilities("controls", "learned control", *LIKELIHOOD), provides=LEARNS)
COH = Entry(JointConfig, coh, requires=capabilities("controls", *LIKELIHOOD), provides=LEARNS)
