"""What all tuners that peft attaches have in common: attach, switch off, save and load."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ModelError
from alignlab.models.controls import Controls
from alignlab.models.knob import Strength, Term
from alignlab.tuners.tuner import one_pass, setting

if TYPE_CHECKING:
    from typing_extensions import Self


def stores_transposed(model: nn.Module) -> bool:
    """Whether the model's linear maps are GPT-2's Conv1D, which store their weight in x out; peft wants to be told."""
    return any(isinstance(module, Conv1D) for module in model.modules())


class PeftTuner:
    """A peft adapter; each kind adds its `at`."""

    per_row = True
    controls: Controls | None = None
    adds_parameters = True

    def __init__(self, model: PreTrainedModel, config: PeftConfig) -> None:
        try:
            with warnings.catch_warnings():
                # peft asks a property that transformers 5 has renamed
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
                self.module: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as error:
            raise ModelError(f"peft cannot attach {config.peft_type}: {error}") from error
        self._find()

    @classmethod
    def around(cls, model: PeftModel) -> Self:
        """The tuner of a model that peft has attached already."""
        tuner = cls.__new__(cls)
        tuner.module = model
        tuner._find()
        return tuner

    def _find(self) -> None:
        self.layers: list[Any] = [m for m in self.module.modules() if isinstance(m, BaseTunerLayer)]
        self._learned = [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""
        return list(self._learned)

    def parts(self) -> Mapping[str, list[nn.Parameter]]:
        """None; a tuner of several parts says so."""
        return {}

    def terms(self, strength: Strength) -> tuple[Term, ...]:
        """One pass at this strength."""
        return one_pass(strength)

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """The edit scaled."""
        raise TypeError(f"{type(self).__name__} does not say what a strength means: {setting}")

    def off(self) -> AbstractContextManager[None]:
        """Without the adapter. Layers are switched one by one, since peft's own context also turns gradients off and on."""
        return setting("_disable_adapters", True, self.layers)

    def set_base_model(self, folder: Path) -> None:
        """Written into adapter_config.json."""
        for config in self.module.peft_config.values():
            config.base_model_name_or_path = str(folder.resolve())

    def detached(self) -> AbstractContextManager[None]:
        """Without the adapter; one whose start depends on the backbone says so."""
        return self.off()

    def save(self, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors, loadable with PeftModel.from_pretrained."""
        # "auto" would ask the hub for the base's config and may write whole embeddings beside the adapter (P5).
        self.module.save_pretrained(str(folder), save_embedding_layers=False)

    def load(self, folder: Path) -> None:
        """Reads the adapter's tensors back."""
        tensors = load_peft_weights(str(folder), device="cpu")
        expected = get_peft_model_state_dict(self.module, save_embedding_layers=False)
        differing = sorted(tensors.keys() ^ expected.keys())
        if differing:
            raise ModelError(f"{folder} holds other tensors than this adapter has, {differing[0]} for one; it is another's.")
        set_peft_model_state_dict(self.module, tensors)
