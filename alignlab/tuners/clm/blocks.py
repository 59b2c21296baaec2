"""The new blocks: copies of the first one that write nothing yet, in float32.

Source: CLM (arXiv 2503.04346), sections 4.1 and 4.2; random start: InRa (arXiv 2506.12704), table 4.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from alignlab.tuners.clm.config import ClmConfig
from alignlab.tuners.precision import at_least_float32

HALF = (torch.bfloat16, torch.float16)


class ClmBlocks(nn.Module):
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
                _silence(block, self._writes)
        self.register_load_state_dict_pre_hook(_lift)
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
        """Untrained blocks of a backbone that has been trained since: what was copied is copied again, the rest stays."""
        for block in self.blocks:
            silent = set() if self._random else {id(parameter) for parameter in written(block, self._writes)}
            for name, parameter in block.named_parameters():
                drawn = self._random and isinstance(block.get_submodule(name.rpartition(".")[0]), (nn.Linear, Conv1D))
                if not drawn and id(parameter) not in silent:
                    parameter.copy_(base.get_parameter(name))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClmBlocks:
        """Follow `.to(device)`, but not a cast to a half type."""
        super()._apply(lambda tensor: at_least_float32(tensor, fn(tensor)), recurse)  # type: ignore[no-untyped-call]
        return self


def number_as(block: nn.Module, index: int) -> None:
    """Tells a block which layer of the cache is its own."""
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
def _silence(block: nn.Module, writes: tuple[str, ...]) -> None:
    """Zeroes every tensor of what writes into the residual stream: the block becomes the identity."""
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


def _lift(_module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A file's half-precision tensors as float32: loading with `assign=True` would take them as they are."""
    for name, tensor in state_dict.items():
        if name.startswith(prefix):
            state_dict[name] = at_least_float32(tensor, tensor)
