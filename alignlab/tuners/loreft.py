"""LoReFT (arXiv 2404.03592): a low-rank edit of the output of whole blocks, as a PEFT method and as a tuner with a strength.

PEFT has none of its own. Equation 2 of the paper, h2 = h1 + R^T (W h1 + b - R h1) with orthonormal rows R, written
with A = W - R: h2 = h1 + c R^T (A h1 + b), c being the strength. The functions are the same, and A = 0, b = 0 is the backbone
itself; the paper starts at random. It edits some positions of the prompt; here every position is edited, as RED does.
Shapes: B rows, D width of the residual stream, K rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ConfigError, ModelError
from alignlab.models.anatomy import block_list, text_config
from alignlab.models.strength import Strength
from alignlab.tuners.config import LoreftTunerConfig
from alignlab.tuners.peft_tuner import AddingLayer, AddingTuner, AroundLayer, Float32, LayerModel, peft_type, register


@dataclass
class LoreftConfig(PeftConfig):
    """The configuration of a LoReFT adapter. `rank`: of each edit; `width`: of the residual stream, null = the model's own."""

    target_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "The blocks, by name."})
    exclude_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "Blocks to leave alone."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules that are trained beside it."})
    rank: int = field(default=4, metadata={"help": "Rank of each edit."})
    width: int | None = field(default=None, metadata={"help": "Width of the residual stream; None: the model's hidden_size."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type("LOREFT")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


class LoreftEdit(Float32):
    """One adapter's edit behind one block: `basis` (K, D), whose rows are made orthonormal, `source` (K, D) and `bias` (K,)."""

    def __init__(self, width_D: int, rank_K: int) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.empty(rank_K, width_D))
        self.source = nn.Parameter(torch.zeros(rank_K, width_D))
        self.bias = nn.Parameter(torch.zeros(rank_K))
        nn.init.orthogonal_(self.basis)

    def rows_KD(self) -> Tensor:
        """R: an orthonormal basis of what `basis` spans, in the directions of its rows."""
        spanned_DK, upper_KK = torch.linalg.qr(self.basis.T)
        return (spanned_DK * upper_KK.diagonal().sign()).T

    def forward(self, h1: Tensor) -> Tensor:
        """What is added to h1 of shape (B, ..., D) at strength 1, float32."""
        return (h1 @ self.source.T + self.bias) @ self.rows_KD()


class LoreftLayer(AroundLayer, AddingLayer):
    """A frozen block whose output is edited by the active adapters, in their order."""

    adapter_layer_names = ("loreft_edits",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoreftConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.loreft_edits = nn.ModuleDict()
        self.strength: Strength = 1.0
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: LoreftConfig) -> None:
        """Adds an edit that changes nothing yet."""
        assert config.width is not None  # LoreftModel has set it
        edit = LoreftEdit(config.width, config.rank)
        self.loreft_edits[adapter_name] = edit.to(next(self.base_layer.parameters()).device)
        BaseTunerLayer.set_adapter(self, self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output, its states (B, ..., D) edited in float32 and cast back to their own dtype."""
        output = self.base_layer(*args, **kwargs)
        if isinstance(output, Tensor):
            return self.with_added(output, self.loreft_edits)
        return self.with_added(output[0], self.loreft_edits), *output[1:]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises NotImplementedError: the residual stream has no weight of its own."""
        raise NotImplementedError("an edit of the residual stream has no place in a linear layer; keep it beside its backbone")


class LoreftModel(LayerModel):
    """LoReFT as a PEFT method."""

    prefix = "loreft_"
    tuner_layer_cls = LoreftLayer

    def _prepare_adapter_config(self, peft_config: LoreftConfig, model_config: dict[str, Any]) -> LoreftConfig:  # type: ignore[override]
        if peft_config.target_modules is None:
            raise ModelError("a LoReFT needs target_modules: the names of the blocks whose output it edits.")
        if peft_config.width is None:
            peft_config.width = int(text_config(self.model.config).hidden_size)
        return peft_config

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """A block has no weight of its own for peft to look at; the edits are on its device already."""
        setattr(parent, child_name, new_module)


class LoreftTuner(AddingTuner):
    """h1 + c R^T (A h1 + b)."""


register("loreft", LoreftConfig, LoreftModel, LoreftTuner)


def build(config: LoreftTunerConfig, model: PreTrainedModel) -> LoreftTuner:
    """Puts an edit behind the blocks of the model, of both stacks of an encoder-decoder model, or behind those with the numbers
    in `layers`. Raises ConfigError for a number that no stack has."""
    stacks = [model.get_encoder(), model.get_decoder()] if model.config.is_encoder_decoder else [model]
    names: list[str] = []
    for stack in stacks:
        (outer,) = [name for name, module in model.named_modules() if module is stack]
        inner, blocks = block_list(stack)
        outside = [number for number in config.layers or () if number > len(blocks)]
        if outside:
            raise ConfigError(
                f"tuner.layers names layer {outside[0]}, and the model has {len(blocks)}; give numbers from 1 on."
            )
        chosen = config.layers or range(1, len(blocks) + 1)
        names += [".".join(filter(None, (outer, inner, str(number - 1)))) for number in chosen]
    return LoreftTuner(model, LoreftConfig(target_modules=names, rank=config.rank))
