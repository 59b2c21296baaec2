"""A LoRA that is learned beside a tuner and then becomes part of the backbone's weights: fine-tuning for small machines."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.models.kinds import task_type_of
from alignlab.tuners.peft_tuner import stores_transposed
from alignlab.tuners.weights import read

NAME = "fine_tuning"
"""Of the adapter in peft; torch keeps "update" for itself."""
FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class UpdateShape:
    """LoRA on peft's own choice of linear maps, usually queries and values, in every block."""

    rank: int
    alpha: float
    dropout: float


class Update:
    """A LoRA in float32, stored as peft's adapter. It stands in the model until `remove`; the tuner's own is set aside."""

    def __init__(self, model: PreTrainedModel, shape: UpdateShape) -> None:
        self._model = model
        self._config = LoraConfig(
            task_type=task_type_of(model),
            r=shape.rank,
            lora_alpha=shape.alpha,
            lora_dropout=shape.dropout,
            fan_in_fan_out=stores_transposed(model),
        )
        learned = {parameter for parameter in model.parameters() if parameter.requires_grad}
        self._active = {layer: list(layer.active_adapters) for layer in _layers(model).values()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*`peft_config`.*")  # the tuner's own may be a LoRA, too
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            inject_adapter_in_model(self._config, model, adapter_name=NAME)
        for layer in _layers(model).values():
            layer.set_adapter(NAME, inference_mode=True)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in learned)
        own = {name: parameter for name, parameter in model.named_parameters() if f".{NAME}." in name}
        for parameter in own.values():
            parameter.data = parameter.data.float()
        self._named = {f"base_model.model.{name.replace(f'.{NAME}', '')}": parameter for name, parameter in own.items()}

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""
        return list(self._named.values())

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
        layers = [layer for layer in _layers(self._model).values() if NAME in layer.lora_A]
        with torch.no_grad():
            pairs = [(layer.get_base_layer().weight, layer.get_delta_weight(NAME)) for layer in layers]
            return [(weight, (weight.float() + delta.float()).to(weight.dtype)) for weight, delta in pairs]

    def remove(self) -> None:
        """Takes the update out of the model, which is built as before; the tuner's own adapter is active again."""
        learned = {parameter for parameter in self._model.parameters() if parameter.requires_grad}
        for name, layer in _layers(self._model).items():
            if layer not in self._active:  # a linear map that had no LoRA
                parent, _, child = name.rpartition(".")
                setattr(self._model.get_submodule(parent), child, layer.get_base_layer())
                continue
            layer.set_adapter(self._active[layer], inference_mode=True)
            if NAME in layer.lora_A:
                layer.delete_adapter(NAME)
        self._model.peft_config.pop(NAME)
        for parameter in self._model.parameters():
            parameter.requires_grad_(parameter in learned)


def _layers(model: PreTrainedModel) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
