"""A LoRA that is learned beside a tuner and then becomes part of the backbone's weights: fine-tuning for small machines."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.tuners.tuner import Rated
from alignlab.tuners.weights import read

NAME = "fine_tuning"
"""Of the adapter in peft; torch keeps "update" for itself."""
FILE = "adapter_model.safetensors"


class Update:
    """The update of every linear map that `config` names, stored as peft's adapter. It stands in the model until `remove`."""

    def __init__(self, model: PreTrainedModel, config: LoraConfig) -> None:
        self._model, self._config = model, config
        learned = {parameter for parameter in model.parameters() if parameter.requires_grad}
        active = {layer: list(layer.active_adapters) for layer in _layers(model)}
        with warnings.catch_warnings():
            # The tuner's own LoRA may be there already, and is set aside on purpose.
            warnings.filterwarnings("ignore", message=".*`peft_config`.*")
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            inject_adapter_in_model(config, model, adapter_name=NAME)
        self._before = {layer: active.get(layer, []) for layer in _layers(model)}
        for layer in self._before:
            layer.set_adapter(NAME, inference_mode=True)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in learned)
        self._layers = [layer for layer in self._before if NAME in layer.lora_A]
        own = {name: parameter for name, parameter in model.named_parameters() if f".{NAME}." in name}
        self._named = {f"base_model.model.{name.replace(f'.{NAME}', '')}": parameter for name, parameter in own.items()}

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""
        return list(self._named.values())

    def rated(self) -> list[Rated]:
        """None."""
        return []

    def save(self, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors, as peft does."""
        folder.mkdir(parents=True, exist_ok=True)
        self._config.save_pretrained(str(folder))
        save_file({name: p.detach().contiguous() for name, p in self._named.items()}, folder / FILE, metadata={"format": "pt"})

    def load(self, folder: Path) -> None:
        """Reads them back. Raises ModelError where the file is another adapter's."""
        read(self._named, folder, FILE)

    def updated(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each weight that has an update, beside what it is with it."""
        with torch.no_grad():
            pairs = [(layer.get_base_layer().weight, layer.get_delta_weight(NAME)) for layer in self._layers]
            return [(weight, weight + delta.to(weight.dtype)) for weight, delta in pairs]

    def remove(self) -> None:
        """Takes the update out of the model; the tuner's own adapter is active again."""
        learned = {parameter for parameter in self._model.parameters() if parameter.requires_grad}
        for layer, active in self._before.items():
            layer.set_adapter(active, inference_mode=True)
            if NAME in layer.lora_A:
                layer.delete_adapter(NAME)
        self._model.peft_config.pop(NAME)
        for parameter in self._model.parameters():
            parameter.requires_grad_(parameter in learned)


def _layers(model: PreTrainedModel) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
