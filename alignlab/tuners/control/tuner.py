"""Controls as a tuner of the frame: which class a pass runs under, and the dial between two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from alignlab.errors import ControlError, ModelError
from alignlab.models.strength import WITHOUT, Strength, WeightedPass
from alignlab.tuners.config import ControlTunerConfig
from alignlab.tuners.control.base_hash import refuse_other, weights_hash
from alignlab.tuners.control.config import ControlConfig
from alignlab.tuners.control.layer import classes_of
from alignlab.tuners.peft_tuner import PeftTuner


class ControlTuner(PeftTuner):
    """A class per row; for two classes z = s z_first + (1 - s) z_second, any real s (our choice; MEET has no dial)."""

    starts_as_base = False

    def _find(self) -> None:
        super()._find()
        config = self.module.active_peft_config
        assert isinstance(config, ControlConfig)
        self.config = config
        self.controls = config.controls

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """Both classes, or one of them at exactly 0 and 1."""
        assert self.controls is not None
        return self.controls.at_strength(strength)

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """The class of all rows, or of each; forms that stand in the text need no setting. What was trained beside the control
        is there under every class, and not without any.

        Raises ControlError for rows with and without a class where something was.
        """
        chosen: AbstractContextManager[None] = classes_of(self.layers, setting) if self.config.form == "lora" else nullcontext()
        if not self.beside.names:
            return chosen
        return self._beside_too(chosen, _classed(setting, self.one_strength))

    @contextmanager
    def _beside_too(self, chosen: AbstractContextManager[None], classed: bool) -> Iterator[None]:
        with chosen, self.beside.at(float(classed)):
            yield

    def save(self, folder: Path) -> None:
        """Beside the small tensors, which weights they were tuned with."""
        self.config.base_hash = weights_hash(self.module)
        super().save(folder)

    def load(self, folder: Path) -> None:
        """Reads the tensors back. Raises ModelError for other classes, and for other weights than they were tuned with."""
        written = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if written.get("classes") != self.config.classes:
            raise ModelError(f"{folder} holds a control of {written.get('classes')}, and this one has {self.config.classes}.")
        refuse_other(self.module, written.get("base_hash"))
        super().load(folder)


def _classed(setting: Strength, why: str) -> bool:
    """Whether the rows have a class. Raises ControlError where only some of them have."""
    if not isinstance(setting, Tensor):
        return setting != WITHOUT
    classed = setting != WITHOUT
    if bool(classed.any()) and not bool(classed.all()):
        raise ControlError(f"rows with and without a class cannot share a pass here: {why}.")
    return bool(classed.all())


def build(_config: ControlTunerConfig, model: PreTrainedModel, control: ControlConfig) -> ControlTuner:
    """Puts the chosen control in, at its start."""
    return ControlTuner(model, control)
