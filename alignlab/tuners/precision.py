"""Parameters of tuners stay in float32 over any backbone: small steps round away in half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self


class Float32(nn.Module):
    """A small module that keeps its own parameters in float32, through `.to`, peft's attaching and loading."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow `.to(device)`, but not `.to(dtype)`: peft's attaching and a later cast of the model both come here."""
        super()._apply(lambda tensor: at_least_float32(tensor, fn(tensor)), recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Lift a file's half-precision tensors: loading with `assign=True` would take them as they are."""
        for name in self._parameters:
            if prefix + name in state_dict:
                state_dict[prefix + name] = state_dict[prefix + name].float()
        super()._load_from_state_dict(state_dict, prefix, *rest)


def at_least_float32(before: Tensor, after: Tensor) -> Tensor:
    """What a module's `_apply` makes of a tensor: a move to another device is followed, a cast to a half type is not."""
    if not after.is_floating_point() or after.dtype in (torch.float32, torch.float64):
        return after
    return before.to(after.device, torch.float32)
