"""MEET (arXiv 2310.00819): controls tuned first while the model rests, then together with it. Its config chooses `control`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError
from alignlab.methods.controlled import LIKELIHOOD, JointConfig, stages
from alignlab.registry import Entry, capabilities
from alignlab.training.config import FitConfig

if TYPE_CHECKING:
    from alignlab.training.method import Method

STAGES = ["controls", "joint"]


@dataclass
class MeetConfig(JointConfig):
    """`stages`: both, in this order, or one of them, an ablation, which then takes over the other's steps."""

    stages: list[str]
    controls: FitConfig

    def check(self) -> None:
        """Raises ConfigError for settings that cannot train, and for another list of stages."""
        super().check()
        self.controls.check("method.controls")
        if self.stages not in (STAGES, STAGES[:1], STAGES[1:]):
            raise ConfigError(f"method.stages={self.stages} must be [controls,joint], [controls] or [joint].")
        if self.controls.batch != self.joint.batch:
            raise ConfigError(
                f"method.controls.batch={self.controls.batch} and method.joint.batch={self.joint.batch} must be the same: both"
                " stages cut their steps from one stream of batches."
            )

    def fits(self) -> dict[str, FitConfig]:
        """Both stages, whether or not they are two: one that is left out leaves its steps to the other."""
        return {"controls": self.controls, "joint": self.joint}

    def shared(self) -> dict[str, Any]:
        """`controls`, which does not read the rates of `joint`; its batches do come from one stream of both."""
        return {"controls": [self.controls, self.joint.length]} if self.stages == STAGES else {}


def build(config: MeetConfig) -> Method:
    """`controls`, then `joint`."""
    fits = {"controls": config.controls, "joint": config.joint}
    return stages(config, fits, config.stages)


ENTRY = Entry(
    MeetConfig,
    build,
    requires=capabilities("controls", "learned control", *LIKELIHOOD),
    provides=capabilities("training", "labelled training"),
)
