"""Parameters of tuners stay in float32 over any backbone: small steps round away in half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(before: Tensor, after: Tensor) -> Tensor:
    """What a module's `_apply` makes of a tensor: a move to another device is followed, a cast to a half type is not."""
    if not after.is_floating_point() or after.dtype in (torch.float32, torch.float64):
        return after
    return before.to(after.device, torch.float32)
