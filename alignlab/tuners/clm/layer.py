"""The first block with new blocks in front of it: out = Block0(Phi(h)), and for rows that are switched off Block0(h).

Source: CLM (arXiv 2503.04346), section 4 and figure 4. Shapes: R rows of a pass, T time, D width.
"""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.cache_utils import Cache

from alignlab.errors import ControlError, ModelError
from alignlab.models.strength import Strength
from alignlab.tuners.clm.blocks import ClmBlocks
from alignlab.tuners.clm.config import ClmConfig
from alignlab.tuners.tuner import setting

OF_HEADS = ("alibi", "position_bias")
"""Arguments of Bloom's, Falcon's and MPT's blocks that count heads in front, so that rows cannot be cut out of them."""


@dataclass(frozen=True)
class Rows:
    """Settings that differ by row. `through`: rows that go through the new blocks; `share_R11`: how much of the blocks'
    output those rows take, None where it is all of it."""

    count: int
    through: slice | Tensor
    share_R11: Tensor | None


def block_at(module: nn.Module, value: Strength) -> AbstractContextManager[None]:
    """Sets every CLM layer below `module`: 0 leaves the new blocks out, 1 runs them, a tensor says it per row.

    Numbers in between, and beyond, mix the blocks' output with their input (not the paper's dial, which mixes logits).
    Raises ControlError for a setting that is not finite or not of shape (rows,), and where there is no CLM layer.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, ClmLayer)]
    if not layers:
        raise ControlError(f"{type(module).__name__} carries no CLM block, so there is nothing to set.")
    return setting("setting", _setting(value), layers)


class ClmLayer(nn.Module, BaseTunerLayer):
    """The backbone's first block, with the active adapters' blocks in front; asked for anything else, it is that block."""

    # A ModuleDict of modules: TRL copies adapters by looking for `.<adapter>.` in names.
    adapter_layer_names = ("clm_blocks",)

    def __init__(self, base_layer: nn.Module, depth: int, adapter_name: str, config: ClmConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.depth = depth
        self.clm_blocks = nn.ModuleDict()
        self.setting: float | Rows = 1.0
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: ClmConfig) -> None:
        """Add an adapter: copies of the first block that write nothing yet, with cache layers behind the backbone's own."""
        free = max([self.depth, *(cast("ClmBlocks", blocks).cache_layers.stop for blocks in self.clm_blocks.values())])
        self.clm_blocks[adapter_name] = ClmBlocks(self.base_layer, config, free)
        BaseTunerLayer.set_adapter(self, cast("list[str]", self.active_adapters), inference_mode=config.inference_mode)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The new blocks on the rows that take them, then the first block on all rows.

        Raises ControlError for settings of another number of rows, and for a cache whose tokens were read without the blocks.
        """
        if not self.disable_adapters and self.setting != 0.0:
            for name in self.active_adapters:
                if name in self.clm_blocks:
                    hidden_states = self._mixed(cast("ClmBlocks", self.clm_blocks[name]), hidden_states, args, kwargs)
        return self.base_layer(hidden_states, *args, **kwargs)

    def follow_base(self) -> None:
        """Untrained blocks become copies of the first block as it is now."""
        for blocks in self.clm_blocks.values():
            cast("ClmBlocks", blocks).follow(self.base_layer)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises ModelError: one more block is another architecture, so there is no merging in place."""
        raise ModelError("a CLM block cannot be merged in place; `merge_and_unload` gives a model with one more layer.")

    def unmerge(self) -> None:
        """Nothing is ever merged in place."""

    def _mixed(self, blocks: ClmBlocks, hidden_RTD: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is not None:
            _make_room(cache, blocks)
        at = self.setting
        if not isinstance(at, Rows):
            out_RTD = blocks(hidden_RTD, args, kwargs)
            return out_RTD if at == 1.0 else _blend(out_RTD, hidden_RTD, at)
        if at.count != len(hidden_RTD):
            raise ControlError(
                f"{at.count} settings were given for {len(hidden_RTD)} rows of a pass; give one, or one per row."
            )
        through_RTD = hidden_RTD[at.through]
        if any(kwargs.get(name) is not None for name in OF_HEADS):
            out_RTD = blocks(hidden_RTD, args, kwargs)[at.through]
        else:
            some_kwargs = {name: _picked(value, at) for name, value in kwargs.items()}
            out_RTD = blocks(through_RTD, _picked(args, at), some_kwargs)
        if at.share_R11 is not None:
            out_RTD = _blend(out_RTD, through_RTD, at.share_R11.to(out_RTD.device))
        mixed_RTD = hidden_RTD.clone()
        mixed_RTD[at.through] = out_RTD
        return mixed_RTD

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


def _setting(value: Strength) -> float | Rows:
    if not isinstance(value, Tensor):
        if not math.isfinite(value):
            raise ControlError(f"a setting is a finite number, got {value}.")
        return float(value)
    if value.dim() != 1 or not bool(value.isfinite().all()):
        raise ControlError(f"settings are finite and of shape (rows,), got shape {tuple(value.shape)}.")
    distinct = set(value.tolist())
    if not distinct:
        raise ControlError("no setting was given; give one number, or one per row.")
    if len(distinct) == 1:
        return float(distinct.pop())
    on_R = value.nonzero()[:, 0]
    first, last = int(on_R[0]), int(on_R[-1])
    # A run of rows is cut out without copying, which is how the decoder lays its streams.
    through: slice | Tensor = slice(first, last + 1) if last - first + 1 == len(on_R) else on_R
    share_R = value[on_R]
    return Rows(len(value), through, None if bool((share_R == 1).all()) else share_R[:, None, None])


def _blend(out: Tensor, before: Tensor, share: float | Tensor) -> Tensor:
    """share * out + (1 - share) * before, which is `out` bit for bit at 1."""
    wide = torch.promote_types(out.dtype, torch.float32)
    return (share * out.to(wide) + (1 - share) * before.to(wide)).to(out.dtype)


def _picked(value: Any, rows: Rows) -> Any:
    """The part of an argument that belongs to the rows: of tensors that have the rows in front, also inside tuples."""
    if isinstance(value, tuple):
        return tuple(_picked(part, rows) for part in value)
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == rows.count:
        return value[rows.through]
    return value


def _make_room(cache: Cache, blocks: ClmBlocks) -> None:
    """Caches are made with one layer per block of the config; the new blocks' layers are added on first use."""
    # Before the first block runs, all layers hold the same tokens.
    if any(cache.get_seq_length(number) != cache.get_seq_length() for number in blocks.cache_layers):
        raise ControlError("this cache holds tokens read without the CLM block; begin a new one, or keep the strength at 0.")
    # A cache that was made without a config grows by itself.
    while cache.layers and len(cache.layers) < blocks.cache_layers.stop:
        cache.layers.append(copy.deepcopy(cache.layers[0]))
