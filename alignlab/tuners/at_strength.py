"""Sets the strength, or the class, of a model that PEFT loaded, without a run or a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from peft import PeftConfig, PeftModel, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from alignlab.errors import ControlError, ModelError
from alignlab.models.decode import CustomGenerate, decoding
from alignlab.models.policy import Policy
from alignlab.models.strength import AskedStrengths, ClassMixture, HasStrength, WeightedPass, as_strength, strengths_of
from alignlab.models.text import Codec
from alignlab.tuners.ia3 import Ia3Tuner
from alignlab.tuners.lora import LoraTuner
from alignlab.tuners.peft_tuner import REGISTERED, PeftTuner

T = TypeVar("T")


def at_strength(
    model: PeftModel | PreTrainedModel | Policy,
    strength: AskedStrengths,
    *,
    template: str | Codec | None = None,
    streamer: BaseStreamer | None = None,
) -> CustomGenerate:
    """For `model.generate(..., custom_generate=at_strength(model, strength))`: one number, or one per prompt of the batch. Of a
    policy with several adapters, each may be a mapping from their names to numbers.

    All arguments of `generate` stay, but for three that transformers hands to no custom function: a `streamer` is given here,
    stop strings as `stopping_criteria=[StopStringCriteria(tokenizer, "...")]`, and there is no assistant. Beams run where a
    single pass does. `template`: what wrote the prompts, a policy's codec or its `template_hash`; a control is asked in the
    template that it was trained with (a Policy is checked when it is made). A streamer needs a single prompt.

    Raises ModelError for an adapter without a strength and for a template other than the control's, and ControlError for
    strengths that are not finite or of another number than the prompts.
    """
    tuner = _tuner_for(model, template)
    values = strengths_of(tuner, strength)

    def passes(rows: int, copies: int, device: torch.device) -> Sequence[WeightedPass]:
        each = _per_row(values, rows, copies) if isinstance(strength, Sequence) else values * rows
        return tuner.passes(as_strength(each, device))

    return decoding(tuner, passes, streamer)


def at_class(
    model: PeftModel | PreTrainedModel | Policy,
    control: ClassMixture | Sequence[ClassMixture],
    *,
    template: str | Codec | None = None,
    streamer: BaseStreamer | None = None,
) -> CustomGenerate:
    """The same for a control: one class, or one per prompt; a class is a name, or a mapping from names to weights that add up
    to 1. The prompts hold no control: each stream puts in its own.

    Raises ModelError for an adapter without a strength and for a template other than the control's, and ControlError for an
    adapter without classes and for an unknown class.
    """
    tuner = _tuner_for(model, template)
    controls = tuner.controls
    if controls is None:
        raise ControlError("this adapter has a strength and no classes; take at_strength.")
    many = isinstance(control, Sequence) and not isinstance(control, str)
    given = controls.mixtures(control, len(control) if many else 1)

    def passes(rows: int, copies: int, _device: torch.device) -> Sequence[WeightedPass]:
        each = _per_row(given, rows, copies) if many else given * rows
        return controls.passes(controls.mixtures(each, rows))

    return decoding(tuner, passes, streamer)


def tuner_in(model: PeftModel | PreTrainedModel) -> HasStrength:
    """The tuner of the active adapter; of a model in which PEFT has put layers, too, as transformers hands it to a custom
    function. Raises ModelError for an adapter without one, and for a model without an adapter."""
    if not isinstance(model, PeftModel):
        model = cast("PeftModel", _Carrier(model))
    kind = str(model.active_peft_config.peft_type.value)
    known: dict[str, type[PeftTuner]] = {**dict(sorted(REGISTERED.items())), "IA3": Ia3Tuner, "LORA": LoraTuner}
    if kind not in known:
        raise ModelError(f"no dial is known for a {kind} adapter; there is one for {', '.join(known)}.")
    return known[kind].around(model)


def turns(kind: str) -> bool:
    """Whether an adapter of a type of PEFT's can have a strength here: not where PEFT's own forward reads its vectors."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)  # none of a type of ours that nothing has registered yet
    return config is None or not issubclass(config, PromptLearningConfig)


class _Carrier(nn.Module):
    """As much of a PeftModel as a tuner looks at, around a model with an adapter. Raises ModelError where it has none."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        self.peft_config: dict[str, PeftConfig] = getattr(model, "peft_config", {})
        if not layers or not self.peft_config:
            raise ModelError(f"this {type(model).__name__} carries no adapter in its layers; load one with PeftModel first.")
        self.active_adapters = [name for name in layers[0].active_adapters if name in self.peft_config]
        self.base_model = nn.ModuleDict({"model": model})

    @property
    def active_peft_config(self) -> PeftConfig:
        """Of the first active adapter."""
        return self.peft_config[self.active_adapters[0]]

    def get_base_model(self) -> nn.Module:
        """The model itself."""
        return self.base_model["model"]


def _tuner_for(model: PeftModel | PreTrainedModel | Policy, template: str | Codec | None) -> HasStrength:
    """The tuner of the model. Raises ModelError where the template is another than its control's."""
    tuner = model.tuner if isinstance(model, Policy) else tuner_in(model)
    if template is not None and tuner.controls is not None:
        tuner.controls.check_template(template if isinstance(template, str) else template.template_hash)
    return tuner


def _per_row(values: Sequence[T], rows: int, copies: int) -> list[T]:
    """One value per row. The `copies` rows of a prompt, its answers or beams, are adjacent in transformers' batch."""
    prompts = rows // copies
    if len(values) not in (rows, prompts):
        raise ControlError(f"{len(values)} strengths or classes were given for {prompts} prompts; give one, or one per prompt.")
    return list(values) if len(values) == rows else [value for value in values for _ in range(copies)]
