"""Whether tensors are the same to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor] | Iterable[Tensor]
"""By name, or in order."""


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    """Both hold the same names, at least one, and equal tensors under each."""
    one, other = _named(found), _named(expected)
    assert other, "there is nothing to compare"
    assert one.keys() == other.keys()
    assert [name for name, tensor in other.items() if not torch.equal(one[name], tensor)] == []


def _named(tensors: Tensors) -> Mapping[str, Tensor]:
    return tensors if isinstance(tensors, Mapping) else {str(place): tensor for place, tensor in enumerate(tensors)}
