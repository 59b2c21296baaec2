"""The PEFT tuner: finds the first block, puts new ones in front, and makes a plain model with more layers of it."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from alignlab.errors import ControlError, ModelError
from alignlab.tuners.clm.blocks import HALF, ClmBlocks, number_as
from alignlab.tuners.clm.config import ClmConfig
from alignlab.tuners.clm.identity import refuse_other_than_identity
from alignlab.tuners.clm.layer import ClmLayer
from alignlab.tuners.clm.layouts import block_layout

COPIED = (torch.float32, torch.float64, *HALF)
"""Types of weights that can be copied, zeroed and trained."""

BY_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""Keys of a config that hold an entry per layer."""


class ClmModel(BaseTuner):
    """CLM as a PEFT method: `get_peft_model`, saving, loading and several adapters come from peft."""

    prefix = "clm_"
    tuner_layer_cls = ClmLayer

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put the new blocks in front of the first one.

        Raises:
            ModelError: the model is no pre-norm decoder, its layout is not known, its weights are quantised, or its first
                block without what it is said to write is not the identity.
        """
        config = self.peft_config[adapter_name]
        assert isinstance(config, ClmConfig)
        if config.target_modules is None:
            layout = block_layout(self.get_model_config(model))
            config.target_modules, config.writes = layout.first, list(layout.writes)
        if self.get_model_config(model).get("quantization_config"):
            raise ModelError("CLM trains a copy of the first block, which a quantised model cannot give; load it in bfloat16.")
        pattern = config.target_modules
        found = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
        if len(found) != 1:
            raise ModelError(f"CLM's target_modules={pattern!r} names {len(found)} modules; it must name the first block.")
        _refuse_uncopyable(model.get_submodule(found[0]), found[0], config)
        if config.start == "identity":
            refuse_other_than_identity(model, found[0], config.writes or [])
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The plain model with the new blocks as its first layers, in the backbone's type: strength 1.

        Raises:
            ControlError: the blocks are set to something else than 1.
            ModelError: with `safe_merge`, a weight that is not finite.
        """
        holder, layer = self._place()
        if layer.setting != 1.0 or layer.disable_adapters:
            raise ControlError("a plain model with more layers is the model at strength 1; set that first.")
        names = [name for name in adapter_names or layer.active_adapters if name in layer.clm_blocks]
        kind = next(layer.base_layer.parameters()).dtype
        added = [block for name in names for block in _blocks(layer, name)]
        if safe_merge and not all(bool(p.isfinite().all()) for block in added for p in block.parameters()):
            raise ModelError(f"the blocks of {', '.join(names)} hold weights that are not finite; the adapter is broken.")
        others = list(holder)[1:]
        plain = nn.ModuleList([*(block.to(kind).requires_grad_(False) for block in added), layer.base_layer, *others])
        for index, block in enumerate(plain):
            number_as(block, index)
        self._set_layers(holder, plain)
        _describe(self.model.config, len(added))
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """A parameter's name in a file, where no adapter is named. peft looks for the adapter's name near the end; ours
        stands in front of the block."""
        front = f"{cls.prefix}blocks."
        if front not in key:
            removed: str = super()._remove_adapter_name_from_key(key, adapter_name)
            return removed
        return key.replace(f"{front}{adapter_name}.", front, 1)

    def _place(self) -> tuple[nn.ModuleList, ClmLayer]:
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) and isinstance(module[0], ClmLayer):
                return module, module[0]
        raise ModelError("this model carries no CLM block any more.")

    def _set_layers(self, before: nn.ModuleList, after: nn.ModuleList) -> None:
        for module in self.model.modules():
            for name, child in module.named_children():
                if child is before:
                    setattr(module, name, after)
                    return

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """A block has no weight of its own for peft to look at; the copies are on its devices already."""
        setattr(parent, child_name, new_module)

    def _prepare_adapter_config(self, peft_config: ClmConfig, model_config: dict[str, Any]) -> ClmConfig:  # type: ignore[override]
        return peft_config

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: ClmConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, ClmLayer):
            target.update_layer(adapter_name, peft_config)
            return
        assert isinstance(parent, nn.ModuleList)
        layer = ClmLayer(target, len(parent), adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def _blocks(layer: ClmLayer, name: str) -> list[nn.Module]:
    blocks = layer.clm_blocks[name]
    assert isinstance(blocks, ClmBlocks)
    return list(blocks.blocks)


def _describe(config: Any, added: int) -> None:
    """Tells a model's config that it has more layers, in front."""
    config.num_hidden_layers += added
    for key in BY_LAYER:
        values = getattr(config, key, None)
        if values is not None:
            setattr(config, key, [values[0]] * added + list(values))
    if getattr(config, "first_k_dense_replace", 0):
        config.first_k_dense_replace += added


def _refuse_uncopyable(block: nn.Module, name: str, config: ClmConfig) -> None:
    """Raises ModelError for weights that cannot be copied and trained, and for modules that the block does not have."""
    writes = config.writes or []
    inside = block.base_layer if isinstance(block, ClmLayer) else block
    modules, parameters = dict(inside.named_modules()), dict(inside.named_parameters())
    lost = [write for write in writes if write not in modules and write not in parameters]
    if lost:
        raise ModelError(f"{name} has no module {', '.join(lost)}; `writes` names what it adds to the residual stream.")
    whole = [write for write in writes if write in parameters]
    if whole and config.start == "random":
        raise ModelError(f"start='random' draws linear maps anew, and {name}.{whole[0]} is none; take start='identity'.")
    odd = sorted({str(tensor.dtype) for tensor in inside.parameters() if tensor.dtype not in COPIED})
    bare = [write for write in writes if write in modules and not list(modules[write].parameters())]
    if odd or bare:
        held = f"weights of type {', '.join(odd)}" if odd else f"no plain weights in {', '.join(bare)}"
        raise ModelError(
            f"CLM trains a copy of {name}, which holds {held} (quantised); load the backbone in bfloat16 or float32."
        )
