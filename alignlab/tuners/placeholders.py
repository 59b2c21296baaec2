"""Vectors in place of placeholder ids, which a tuner puts into texts: where they go, the layer around an embedding, and PEFT's
side of it. Shapes: R rows of a pass, T time, D width, P placeholder ids.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import LogitsProcessorList, PreTrainedModel, SuppressTokensLogitsProcessor

from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.tuners.peft_tuner import AroundLayer, Float32, LayerModel


def slots(ids_RT: Tensor, ids_P: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """Which placeholder stands at each position, hit_RTP, and which of its `lengths[p]` vectors goes there, slot_RT: the n-th
    placeholder of a kind takes the n-th vector. None where there is no placeholder.

    Raises ControlError where a row holds another number of placeholders than vectors: some were cut off.
    """
    hit_RTP = ids_RT[..., None] == ids_P
    if not bool(hit_RTP.any()):
        return None
    length_P = torch.tensor(lengths, device=ids_RT.device)
    counted_RTP = hit_RTP.cumsum(1)
    whole_RP = torch.where(length_P > 0, counted_RTP[:, -1] % length_P.clamp(min=1), counted_RTP[:, -1]) == 0
    if not bool(whole_RP.all()):
        taken = " and ".join(str(length) for length in dict.fromkeys(lengths))
        raise ControlError(f"a row holds a part of the placeholders only; each kind takes {taken} of them, one after another.")
    return hit_RTP, ((counted_RTP - 1) % length_P.clamp(min=1) * hit_RTP).sum(-1)


class VectorTable(Float32):
    """The vectors of one adapter, which take the places of its placeholders."""

    @abstractmethod
    def forward(self, ids_RT: Tensor, embedded_RTD: Tensor) -> Tensor:
        """The embedded input with vectors in the places of placeholders."""


class PlaceholderEmbedding(AroundLayer, BaseTunerLayer):
    """An input embedding; placeholder ids come out as vectors of the active adapters. Each method names its ModuleDict of
    tables, one per adapter, in `adapter_layer_names`: TRL copies adapters by looking for `.<adapter>.` in names."""

    active_adapters: list[str]

    def __init__(self, base_layer: nn.Embedding, adapter_name: str, config: PeftConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        setattr(self, self.adapter_layer_names[0], nn.ModuleDict())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    @abstractmethod
    def table(self, config: PeftConfig) -> VectorTable:
        """A new adapter's vectors, at their start."""

    @property
    def tables(self) -> nn.ModuleDict:
        """The vectors of each adapter."""
        return cast("nn.ModuleDict", getattr(self, self.adapter_layer_names[0]))

    def update_layer(self, adapter_name: str, config: PeftConfig) -> None:
        """Add an adapter, at its start."""
        self.tables[adapter_name] = self.table(config)
        BaseTunerLayer.set_adapter(self, self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, ids_RT: Tensor) -> Tensor:
        """Embeddings of shape (R, T, D)."""
        embedded_RTD = cast("Tensor", self.base_layer(ids_RT))
        if not self.disable_adapters:
            for name in self.active_adapters:
                if name in self.tables:
                    embedded_RTD = cast("VectorTable", self.tables[name])(ids_RT, embedded_RTD)
        return embedded_RTD

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises ModelError: vectors in a text are not weights."""
        raise ModelError(self.no_merge)

    no_merge = "a soft prompt or token does not merge; `python -m alignlab export` writes it as a file of its own."

    def unmerge(self) -> None:
        """Nothing is ever merged."""


class NoPlaceholder(SuppressTokensLogitsProcessor):
    """A type of its own, since generate drops its `suppress_tokens` for a processor of the type that it would build."""


class PlaceholderModel(LayerModel):
    """A PEFT method with vectors in place of placeholder ids. Its configs have `placeholders`: ids."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *rest: Any, **more: Any) -> None:
        """Raises ConfigError for a placeholder beyond the vocabulary."""
        rows = cast("PreTrainedModel", model).get_input_embeddings().num_embeddings
        beyond = [each for each in self.peft_config[adapter_name].placeholders if not 0 <= each < rows]
        if beyond:
            raise ConfigError(f"placeholder {beyond[0]} lies beyond the vocabulary of {rows}; choose an unused id below that.")
        super().inject_adapter(model, adapter_name, *rest, **more)

    def generate(self, *inputs: Any, **given: Any) -> Any:
        """The model's own, which says no placeholder: a model would read it as a vector. The caller's generation_config stays
        as it is."""
        placeholders = sorted({each for config in self.peft_config.values() for each in self.reserved(config)})
        if placeholders:
            mine = [*(given.get("logits_processor") or ()), NoPlaceholder(placeholders)]
            given["logits_processor"] = LogitsProcessorList(mine)
        return self.model.generate(*inputs, **given)  # type: ignore[operator]

    def reserved(self, config: PeftConfig) -> Sequence[int]:
        """The ids that stand for vectors of an adapter."""
        return cast("Any", config).placeholders or ()

    def _check_tied_modules(self, model: nn.Module, peft_config: PeftConfig) -> None:
        """peft warns that a tied head will not follow; it must not, and nothing is merged into the embedding."""

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """What is unloaded was on its devices all along."""
        setattr(parent, child_name, new_module)


def place_of(model: nn.Module, embedding: nn.Module) -> str:
    """The pattern that PEFT finds an embedding by."""
    name = next(name for name, module in model.named_modules() if module is embedding)
    return rf"(.*\.)?{re.escape(name)}"
