"""Which weights a control was tuned with: a control that was tuned together with a model belongs to that model."""

from __future__ import annotations

import hashlib

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from alignlab.errors import ModelError

SAMPLED = 16
"""Numbers looked at from each end of every tensor: training moves nearly all, and a look stays cheap at any size."""

LOOKED_AT = (torch.float32, torch.bfloat16, torch.float16)


def weights_hash(model: nn.Module) -> str:
    """A short hash of the names, shapes and some numbers of a model's own weights, adapters left out, read as bfloat16."""
    adapters = {
        id(parameter)
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for name in layer.adapter_layer_names
        for parameter in getattr(layer, name).parameters()
    }
    made = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if id(parameter) not in adapters and ".modules_to_save." not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
            made.update(f"{plain} {tuple(parameter.shape)}".encode())
            made.update(_sample(parameter.detach().flatten()))
    return made.hexdigest()[:16]


def refuse_other(model: nn.Module, expected: str | None) -> None:
    """Raises ModelError where a control was tuned with other weights; not looked at are quantised ones and those elsewhere."""
    unknown = any(held.is_meta or held.dtype not in LOOKED_AT for held in model.parameters())
    if expected is not None and not unknown and weights_hash(model) != expected:
        raise ModelError(
            "this control was tuned together with other weights than the model has; load it on the model that was saved beside"
            " it (lm/), in float32 or bfloat16."
        )


def _sample(flat: Tensor) -> bytes:
    ends = torch.cat([flat[:SAMPLED], flat[-SAMPLED:]])
    return ends.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes()
