"""Adapters (arXiv 1902.00751): bottlenecks behind the sub-layers of a block, as a PEFT method and as a tuner with a strength.

PEFT has none of its own. h2 = h1 + c * up(gelu(down(h1))), c being the strength, on what a sub-layer writes, before the
residual sum. With `place=ffn` only behind the feed-forward layer; with `drop` not in the lowest blocks (AdapterDrop, arXiv
2010.11918). `up` starts at zero, so a new adapter changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch.nn.functional as F
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ConfigError, ModelError
from alignlab.models.strength import Strength
from alignlab.tuners.config import AdapterTunerConfig
from alignlab.tuners.peft_tuner import AddingLayer, AddingTuner, Float32, LayerModel, peft_type, register
from alignlab.tuners.targets import RED_TARGETS, matched

_ATTENTION_OUTPUT: Mapping[str, str] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), r"(.*\.)?layers\.\d+\.self_attn\.o_proj"),
    **dict.fromkeys(("bert", "roberta", "electra", "camembert", "xlm-roberta"), r"(.*\.)?layer\.\d+\.attention\.output\.dense"),
    "gpt2": r"(.*\.)?h\.\d+\.attn\.c_proj",
    **dict.fromkeys(("t5", "mt5"), r"(.*\.)?block\.\d+\.layer\.0\.SelfAttention\.o"),
}
"""Model type -> full-match pattern of what the (self-)attention writes; the feed-forward outputs are RED's places."""


@dataclass
class AdapterConfig(PeftConfig):
    """The configuration of an adapter. `bottleneck`: its inner width."""

    target_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "The layers, by name."})
    exclude_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "Layers to leave alone."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules that are trained beside it."})
    bottleneck: int = field(default=8, metadata={"help": "Inner width of each adapter."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type("ADAPTER")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


class Bottleneck(Float32):
    """One adapter's weights at one layer: `down` of shape (bottleneck, D), `up` of shape (D, bottleneck), with biases."""

    def __init__(self, width_D: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width_D, bottleneck)
        self.up = nn.Linear(bottleneck, width_D)
        nn.init.normal_(self.down.weight, std=0.01)  # arXiv 1902.00751, section 3.6
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, h1: Tensor) -> Tensor:
        """What is added to h1 of shape (B, ..., D) at strength 1, float32."""
        added: Tensor = self.up(F.gelu(self.down(h1)))
        return added


class AdapterLayer(nn.Module, AddingLayer):
    """A frozen Linear or Conv1D behind which the active adapters stand, in their order."""

    adapter_layer_names = ("adapter_blocks",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: AdapterConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapter_blocks = nn.ModuleDict()
        self.strength: Strength = 1.0
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: AdapterConfig) -> None:
        """Adds an adapter that changes nothing yet."""
        base: Any = self.base_layer
        self.adapter_blocks[adapter_name] = Bottleneck(
            base.nf if isinstance(base, Conv1D) else base.out_features, config.bottleneck
        )
        BaseTunerLayer._move_adapter_to_device_of_base_layer(self, adapter_name)
        BaseTunerLayer.set_adapter(self, self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output (B, ..., D) with what the adapters add, in float32, cast back to its own dtype."""
        return self.with_added(cast("Tensor", self.base_layer(x)), self.adapter_blocks)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises NotImplementedError: no weight is linear in a bottleneck."""
        raise NotImplementedError("a bottleneck with an activation has no place in a linear layer; keep it beside its backbone")


class AdapterModel(LayerModel):
    """Adapters as a PEFT method."""

    prefix = "adapter_"
    tuner_layer_cls = AdapterLayer

    def _prepare_adapter_config(self, peft_config: AdapterConfig, model_config: dict[str, Any]) -> AdapterConfig:  # type: ignore[override]
        if peft_config.target_modules is None:
            raise ModelError("an adapter needs target_modules: the names of the layers behind which it stands.")
        return peft_config


class AdapterTuner(AddingTuner):
    """h1 + c * adapter(h1); norms that were trained beside it follow the strength."""


register("adapter", AdapterConfig, AdapterModel, AdapterTuner)


def build(config: AdapterTunerConfig, model: PreTrainedModel) -> AdapterTuner:
    """Attaches adapters behind the sub-layers that `place` names, without those of the `drop` lowest blocks of each stack.

    Raises ConfigError where no block is left, ModelError for a type of model whose sub-layers are not known.
    """
    kind = model.config.model_type
    places = {"both": (RED_TARGETS, _ATTENTION_OUTPUT), "ffn": (RED_TARGETS,)}[config.place]
    if config.targets is None and not all(kind in table for table in places):
        known = ", ".join(sorted(_ATTENTION_OUTPUT))
        raise ModelError(f"adapters have no known place in models of type {kind!r} (known: {known}); give tuner.targets.")
    patterns = [config.targets] if config.targets is not None else [table[kind] for table in places]
    found = [name for pattern in patterns for name in matched(model, pattern, "tuner.targets")]
    kept = {name: block for name in found if (block := _block(name)) and int(block.rpartition(".")[2]) >= config.drop}
    if not kept:
        raise ConfigError(f"tuner.drop={config.drop} leaves no block of this model an adapter; set it lower.")
    norms = [name for name, module in model.named_modules() if _is_norm(module) and _block(name) in set(kept.values())]
    return AdapterTuner(
        model,
        AdapterConfig(
            target_modules=list(kept),
            bottleneck=config.bottleneck,
            modules_to_save=norms if config.norms else None,
        ),
    )


def _block(name: str) -> str:
    """The name of the block that a module is in, up to its number; empty outside of blocks."""
    found = re.match(r"(.*?\.\d+)\.", name)
    return found[1] if found else ""


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))
