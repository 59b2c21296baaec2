"""What the configs of all methods have in common."""

from __future__ import annotations

from typing import Any

from alignlab.training.config import FitConfig


class MethodConfig:
    """The base of all methods' configs: what a plan needs without torch. Each method's dataclass adds the fields."""

    def fits(self) -> dict[str, FitConfig]:
        """The stages that train, in order."""
        return {}

    def reads(self, stage: str) -> tuple[str, int]:
        """Of a stage that trains: the split whose records it reads, and how many groups it makes of each. For estimates."""
        del stage
        return "train", 1

    def shared(self) -> dict[str, Any]:
        """The first of them that several jobs may have in common, each with what it reads of this config."""
        return {}

    def of_the_backbone(self) -> frozenset[str]:
        """Those of `shared` that train every weight of the backbone and nothing else: their result does not depend on a tuner
        that leaves the backbone alone."""
        return frozenset()
