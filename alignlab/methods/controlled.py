"""What methods that learn a control have in common: the likelihood of each response under its own class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.errors import ConfigError
from alignlab.methods.config import MethodConfig
from alignlab.training.config import FitConfig

if TYPE_CHECKING:
    from alignlab.training.method import Method


LIKELIHOOD = ("token likelihood", "text in front of prompts")
"""What a control is learned by, and where it stands."""


@dataclass
class JointConfig(MethodConfig):
    """`joint`: the backbone, trained in full with the control in it. `control_rate`: the control's own learning rate there;
    null leaves the control as it is."""

    name: str
    joint: FitConfig
    control_rate: float | None

    def check(self) -> None:
        """Raises ConfigError for settings that cannot train."""
        self.joint.check("method.joint")
        if self.control_rate is not None and not 0 < self.control_rate < 10:
            raise ConfigError(f"method.control_rate={self.control_rate} must lie between 0 and 10, or be null.")

    def fits(self) -> dict[str, FitConfig]:
        return {"joint": self.joint}

    def reads(self, stage: str) -> tuple[str, int]:
        """Both sides of a pair, each under its class."""
        return "train", 2


def stages(config: JointConfig, course: Mapping[str, FitConfig], wanted: Sequence[str]) -> Method:
    """The wanted stages of a course, on one stream of batches. A stage that is left out leaves its steps to the other, so that
    however a course is cut, it is as long and sees the same (MEET's ablations at equal steps and equal data).

    `controls` (MEET, step 1): the backbone rests, the control of each class is fitted on the responses of that class. `joint`
    (step 2): every weight of the backbone together with the controls, by the same likelihood.
    """
    from alignlab.data.classes import LABELLED
    from alignlab.data.encode import labelled
    from alignlab.training.method import Method
    from alignlab.training.objectives import nll
    from alignlab.training.parts import THE_BACKBONE, THE_TUNER, PartSettings, Trains
    from alignlab.training.stages import ScheduleSplit, TrainStage

    control = PartSettings(learning_rate=config.control_rate or 0.0, weight_decay=0.0)
    trains: dict[str, Trains] = {"controls": THE_TUNER, "joint": {**THE_BACKBONE, "tuner": control}}
    lengths = tuple(fit.length for fit in course.values())
    parts = [(0, len(lengths))] if len(wanted) == 1 else [(place, place + 1) for place in range(len(lengths))]
    made = [
        TrainStage(
            name, LABELLED["train"], labelled, nll, course[name], trains=trains[name], course=ScheduleSplit(lengths, *part)
        )
        for name, part in zip(wanted, parts, strict=True)
    ]
    return Method(config.name, tuple(made))
