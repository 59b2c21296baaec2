"""New blocks in front of a backbone's first one: out = Block0(Phi(h)), and Block0(h) for rows that are switched off.

Source: CLM (arXiv 2503.04346), section 4 and figure 4; random start: InRa (arXiv 2506.12704), table 4. Shapes: R rows of a
pass, T time, D width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.models.strength import Strength
from alignlab.tuners.config import MERGES, MOST_BLOCKS, STARTS
from alignlab.tuners.peft_tuner import AroundLayer, Float32, peft_type, temporarily

HALF = (torch.bfloat16, torch.float16)

OF_HEADS = ("alibi", "position_bias")
"""Arguments of Bloom's, Falcon's and MPT's blocks that count heads in front, so that rows cannot be cut out of them."""


@dataclass
class ClmConfig(PeftConfig):
    """The configuration of a CLM adapter.

    Raises:
        ConfigError: a number of blocks or a start that does not exist, or one of `target_modules` and `writes` alone.
    """

    blocks: int = field(default=1, metadata={"help": "Blocks put in front of the first one: 1 to 3."})
    start: str = field(default="identity", metadata={"help": "identity (zeroed copies of the first block) or random."})
    merge: str = field(
        default="logits", metadata={"help": "What the dial mixes: logits (the paper's) or embeddings (not the paper's)."}
    )
    target_modules: str | None = field(
        default=None, metadata={"help": "Full-match pattern of the first block's name; None: from the table of layouts."}
    )
    writes: list[str] | None = field(
        default=None, metadata={"help": "Modules of the block that write into the residual stream; None: from the table."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules beside the block that are trained and saved."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type("CLM")
        if not 1 <= self.blocks <= MOST_BLOCKS:
            raise ConfigError(f"CLM takes 1 to {MOST_BLOCKS} blocks, got {self.blocks}.")
        if self.start not in STARTS:
            raise ConfigError(f"unknown start {self.start!r} for CLM; known: {', '.join(STARTS)}.")
        if self.merge not in MERGES:
            raise ConfigError(f"unknown merge {self.merge!r} for CLM; known: {', '.join(MERGES)}.")
        if (self.target_modules is None) != (self.writes is None):
            raise ConfigError("CLM's target_modules and writes describe one block together; give both, or neither.")


class ClmBlocks(Float32):
    """One adapter's blocks, in float32: at a rate of 5e-7 a step in bfloat16 is rounded away."""

    def __init__(self, base: nn.Module, config: ClmConfig, first_index: int) -> None:
        super().__init__()
        assert config.writes is not None  # the model fills it in
        self._random, self._writes = config.start == "random", tuple(config.writes)
        self.cache_layers = range(first_index, first_index + config.blocks)
        self.blocks = nn.ModuleList(_copied(base) for _ in self.cache_layers)
        for index, block in zip(self.cache_layers, self.blocks, strict=True):
            number_as(block, index)
            if self._random:
                _draw(block)
            else:
                _zero_output_projections(block, self._writes)
        self.requires_grad_(True)
        self._apply(lambda tensor: tensor)

    def forward(self, hidden_RTD: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Through all blocks. Under a half-precision backbone the matrix products run in its type, as the blocks of a
        plain export do; the cast back is exact for an identity block."""
        out_RTD = hidden_RTD
        with torch.autocast(hidden_RTD.device.type, dtype=hidden_RTD.dtype, enabled=hidden_RTD.dtype in HALF):
            for block in self.blocks:
                output = block(out_RTD, *args, **kwargs)
                out_RTD = output if isinstance(output, Tensor) else output[0]
        return out_RTD.to(hidden_RTD.dtype)

    @torch.no_grad()
    def follow(self, base: nn.Module) -> None:
        """Copies from `base`, which has been trained since, all that is neither zeroed nor drawn; for untrained blocks."""
        for block in self.blocks:
            zeroed = set() if self._random else {id(parameter) for parameter in written(block, self._writes)}
            for name, parameter in block.named_parameters():
                drawn = self._random and isinstance(block.get_submodule(name.rpartition(".")[0]), (nn.Linear, Conv1D))
                if not drawn and id(parameter) not in zeroed:
                    parameter.copy_(base.get_parameter(name))


def number_as(block: nn.Module, index: int) -> None:
    """Sets the index of the layer of the cache that a block uses."""
    attention: Any
    for attention in block.modules():
        for key in ("layer_idx", "layer_id"):  # GPT-Neo's own name
            if hasattr(attention, key):
                setattr(attention, key, index)


def _copied(block: nn.Module) -> nn.Module:
    """A copy that shares the model's config, since attention reads there how it is computed."""
    shared = {id(module.config): module.config for module in block.modules() if hasattr(module, "config")}
    made: nn.Module = copy.deepcopy(block, shared)
    return made


def written(block: nn.Module, writes: Sequence[str]) -> list[nn.Parameter]:
    """The tensors of the named modules, and the parameters that are named themselves."""
    return [
        parameter
        for name, parameter in block.named_parameters()
        if any(name == write or name.startswith(f"{write}.") for write in writes)
    ]


@torch.no_grad()
def _zero_output_projections(block: nn.Module, writes: tuple[str, ...]) -> None:
    """Zeroes every tensor that writes into the residual stream: a pre-norm block becomes the identity."""
    for parameter in written(block, writes):
        parameter.zero_()


@torch.no_grad()
def _draw(block: nn.Module) -> None:
    """New weights: matrices as in He et al. (arXiv 1502.01852), biases 0, norms as they are."""
    for module in block.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            # Conv1D stores its weight as in x out, Linear as out x in.
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), mode="fan_out" if isinstance(module, Conv1D) else "fan_in")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class Rows:
    """Settings that differ by row. `through`: rows that go through the new blocks; `weight_R11`: weight of the blocks' output
    in those rows, whose input has the rest; None where all weights are 1."""

    count: int
    through: slice | Tensor
    weight_R11: Tensor | None


def block_at(module: nn.Module, value: Strength) -> AbstractContextManager[None]:
    """Sets every CLM layer below `module`: 0 leaves the new blocks out, 1 runs them, a tensor says it per row.

    Numbers in between, and beyond, mix the blocks' output with their input (not the paper's strength, which mixes logits).
    Raises ControlError for a setting that is not finite or not of shape (rows,), and where there is no CLM layer.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, ClmLayer)]
    if not layers:
        raise ControlError(f"{type(module).__name__} carries no CLM block, so there is nothing to set.")
    return blocks_at(layers, value)


def blocks_at(layers: Sequence[ClmLayer], value: Strength) -> AbstractContextManager[None]:
    """The same for these layers."""
    return temporarily("setting", _setting(value), layers)


class ClmLayer(AroundLayer, BaseTunerLayer):
    """The backbone's first block, with the active adapters' blocks in front; asked for anything else, it is that block."""

    # A ModuleDict of modules: TRL copies adapters by looking for `.<adapter>.` in names.
    adapter_layer_names = ("clm_blocks",)
    active_adapters: list[str]

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
        BaseTunerLayer.set_adapter(self, self.active_adapters, inference_mode=config.inference_mode)

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
            _add_cache_layers(cache, blocks)
        setting = self.setting
        if not isinstance(setting, Rows):
            out_RTD = blocks(hidden_RTD, args, kwargs)
            return out_RTD if setting == 1.0 else _blend(out_RTD, hidden_RTD, setting)
        if setting.count != len(hidden_RTD):
            raise ControlError(
                f"{setting.count} settings were given for {len(hidden_RTD)} rows of a pass; give one, or one per row."
            )
        through_RTD = hidden_RTD[setting.through]
        if any(kwargs.get(name) is not None for name in OF_HEADS):
            out_RTD = blocks(hidden_RTD, args, kwargs)[setting.through]
        else:
            some_kwargs = {name: _picked(value, setting) for name, value in kwargs.items()}
            out_RTD = blocks(through_RTD, _picked(args, setting), some_kwargs)
        if setting.weight_R11 is not None:
            out_RTD = _blend(out_RTD, through_RTD, setting.weight_R11.to(out_RTD.device))
        mixed_RTD = hidden_RTD.clone()
        mixed_RTD[setting.through] = out_RTD
        return mixed_RTD


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
    weight_R = value[on_R]
    return Rows(len(value), through, None if bool((weight_R == 1).all()) else weight_R[:, None, None])


def _blend(out: Tensor, before: Tensor, weight: float | Tensor) -> Tensor:
    """weight * out + (1 - weight) * before, which is `out` bit for bit at 1."""
    wide = torch.promote_types(out.dtype, torch.float32)
    return (weight * out.to(wide) + (1 - weight) * before.to(wide)).to(out.dtype)


def _picked(value: Any, rows: Rows) -> Any:
    """An argument for the rows that go through: of tensors with the rows in front, those rows; also inside tuples."""
    if isinstance(value, tuple):
        return tuple(_picked(part, rows) for part in value)
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == rows.count:
        return value[rows.through]
    return value


def _add_cache_layers(cache: Cache, blocks: ClmBlocks) -> None:
    """Adds the new blocks' layers to the cache on first use: it was made with one layer per block of the model's config."""
    # Before the first block runs, all layers hold the same tokens.
    if any(cache.get_seq_length(number) != cache.get_seq_length() for number in blocks.cache_layers):
        raise ControlError("this cache holds tokens read without the CLM block; begin a new one, or keep the strength at 0.")
    # A cache that was made without a config grows by itself.
    while cache.layers and len(cache.layers) < blocks.cache_layers.stop:
        cache.layers.append(copy.deepcopy(cache.layers[0]))
