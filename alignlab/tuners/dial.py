"""The dial of a model that peft loaded, without a run or a policy around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft import PeftModel

from alignlab.errors import ModelError
from alignlab.models.controls import Asked
from alignlab.models.generate import CustomGenerate, mixing, mixing_classes
from alignlab.models.knob import Knob
from alignlab.models.policy import Policy
from alignlab.tuners.clm.tuner import ClmTuner
from alignlab.tuners.control.tuner import ControlTuner
from alignlab.tuners.lora import LoraTuner
from alignlab.tuners.peft_tuner import PeftTuner
from alignlab.tuners.red.tuner import RedTuner

KNOBS: Mapping[str, type[PeftTuner]] = {
    "CLM": ClmTuner,
    "CONTROL": ControlTuner,
    "RED": RedTuner,
    "LORA": LoraTuner,
}
"""PEFT type -> tuner whose strengths may differ by row."""


def at_strength(model: PeftModel | Policy, strength: float | Sequence[float]) -> CustomGenerate:
    """For `model.generate(..., custom_generate=at_strength(model, strength))`: one number, or one per prompt of the batch.

    Raises ModelError for an adapter without a dial.
    """
    return mixing(model.knob if isinstance(model, Policy) else knob_of(model), strength)


def at_class(model: PeftModel | Policy, control: Asked | Sequence[Asked]) -> CustomGenerate:
    """The same for a control: one class, or one per prompt; a class is a name, or a mapping from names to weights that add up
    to 1. The prompts hold no control: each stream puts in its own.

    Raises ModelError for an adapter without a dial, and ControlError for one without classes and for an unknown class.
    """
    return mixing_classes(model.knob if isinstance(model, Policy) else knob_of(model), control)


def knob_of(model: PeftModel) -> Knob:
    """The knob of the active adapter. Raises ModelError for an adapter without one."""
    kind = str(model.active_peft_config.peft_type.value)
    if kind not in KNOBS:
        raise ModelError(f"no dial is known for a {kind} adapter; there is one for {', '.join(KNOBS)}.")
    return KNOBS[kind].around(model)
