"""The edit itself: h2 = s * h1 + l on the output of one layer (paper, eq. 3), with a strength dial.

Shapes ride in the names: B rows of the batch, D width of the edited output.
"""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ControlError, ModelError
from alignlab.tuners.precision import Float32
from alignlab.tuners.red.config import RedConfig
from alignlab.tuners.tuner import setting

Strength = float | Tensor
"""One number for the whole batch, or a tensor of shape (B,): one per row."""


def strength(module: nn.Module, value: Strength) -> AbstractContextManager[None]:
    """Set the strength of every RED edit below `module`, and put the old ones back on leaving, errors included.

    0 is the backbone, 1 the trained model, other values inter- and extrapolate (our dial; the paper has none).
    With gradient checkpointing the backward pass runs the layers again: keep it inside the context.

    Raises:
        ControlError: there is no edit below `module`, or `value` is not a finite number or a tensor of shape (B,).
    """
    layers = [layer for layer in module.modules() if isinstance(layer, RedLayer)]
    if not layers:
        raise ControlError(f"{type(module).__name__} carries no RED edit, so there is no strength to set.")
    return setting("strength", _checked(value), layers)


class RedEdit(Float32):
    """One adapter's vectors at one layer: `scale` and `shift` of shape (D,), the one that is not learned being None.

    Always float32: near 1.0 the grid of bfloat16 is so wide that an AdamW step of 1e-3 is rounded away every time.
    """

    scale: nn.Parameter | None
    shift: nn.Parameter | None

    def __init__(self, width_D: int, edit: str) -> None:
        super().__init__()
        ones, zeros = torch.ones(width_D, dtype=torch.float32), torch.zeros(width_D, dtype=torch.float32)
        self.register_parameter("scale", nn.Parameter(ones) if edit != "shift" else None)
        self.register_parameter("shift", nn.Parameter(zeros) if edit != "scale" else None)

    def forward(self, h1: Tensor, strength: Strength) -> Tensor:
        """h2 = s(c) * h1 + l(c) for h1 of shape (B, ..., D), with c a number or of shape (B, 1, ..., 1)."""
        scale, shift = self.at(strength)
        scaled = h1 if scale is None else h1 * scale
        return scaled if shift is None else scaled + shift

    def at(self, strength: Strength) -> tuple[Tensor | None, Tensor | None]:
        """s(c) = 1 + c (s - 1) and l(c) = c l; at c = 1 the stored s, which 1 + (s - 1) does not give bit for bit."""
        shift = None if self.shift is None else strength * self.shift.float()
        if self.scale is None:
            return None, shift
        stored = self.scale.float()
        turned = 1 + strength * (stored - 1)
        if isinstance(strength, Tensor):
            return torch.where(strength == 1, stored, turned), shift
        return stored if strength == 1 else turned, shift


class RedLayer(nn.Module, BaseTunerLayer):
    """A frozen Linear or Conv1D whose output is edited by the active adapters, in their order."""

    # A ModuleDict of small modules, never a ParameterDict: TRL copies adapters by looking for `.<adapter>.` in names.
    adapter_layer_names = ("red_edit",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: RedConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.red_edit = nn.ModuleDict()
        self.strength: Strength = 1.0
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self._before_merge: tuple[Tensor, nn.Parameter | None, float] | None = None
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: RedConfig) -> None:
        """Add an adapter that changes nothing yet: s = 1, l = 0."""
        base = self._base()
        width_D = base.nf if isinstance(base, Conv1D) else base.out_features
        self.red_edit[adapter_name] = RedEdit(width_D, config.edit)
        BaseTunerLayer._move_adapter_to_device_of_base_layer(self, adapter_name)
        BaseTunerLayer.set_adapter(self, self._active(), inference_mode=config.inference_mode)

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output (B, ..., D), edited in float32 and cast back to its own dtype.

        Raises:
            ControlError: the strengths do not fit the rows, or are not the one that the edit was merged at.
        """
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return cast("Tensor", self.base_layer(x))
        output = cast("Tensor", self.base_layer(x))
        if self._before_merge is not None:
            self._refuse_turning(self._before_merge[2])
            return output
        if isinstance(self.strength, Tensor):
            rows_B11 = _per_row(self.strength, output)
            # At 0 the base output itself: 1 * y + 0 would lose the sign of a zero.
            return torch.where(rows_B11 == 0, output, self._edited(output, rows_B11))
        return output if self.strength == 0 else self._edited(output, self.strength)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold the edit, at the present strength, into the base: W <- diag(s) W, b <- s * b + l.

        A base without a bias gets one. Computed in float32, then cast; the original is kept until `unmerge`.

        Raises:
            ModelError: the base is quantised, or with `safe_merge` a merged weight is not finite.
            ControlError: the strength is one per row.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.red_edit]
        if not names:
            return
        base = self._base()
        at = self._strength_to_merge(base)
        weight, bias = self._folded(base, names, at)
        if safe_merge and not all(bool(part.isfinite().all()) for part in (weight, bias) if part is not None):
            raise ModelError(f"merging {', '.join(names)} gives weights that are not finite; the adapter is broken.")
        if self._before_merge is None:
            self._before_merge = (base.weight.data, base.bias, at)
        base.weight.data = weight.to(base.weight.dtype)
        if bias is not None:
            # A new parameter, so that the kept one stays as it was.
            base.bias = nn.Parameter(bias.to(base.weight.dtype), requires_grad=False)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the original weight and bias back, bit for bit; no division, which a scale of zero would defeat."""
        if self._before_merge is None:
            warnings.warn("this RED edit is not merged; nothing to undo.", stacklevel=2)
            return
        base = self._base()
        weight, bias, _ = self._before_merge
        # The model may have moved since.
        base.weight.data = weight.to(base.weight)
        if bias is not None:
            bias.data = bias.data.to(base.weight)
        base.register_parameter("bias", bias)
        self._before_merge = None
        self.merged_adapters.clear()

    def _base(self) -> nn.Linear:
        # Conv1D reads the same way, but for its width and the layout of its weight.
        return cast("nn.Linear", self.base_layer)

    def _active(self) -> list[str]:
        return cast("list[str]", self.active_adapters)

    def _edit(self, name: str) -> RedEdit:
        return cast("RedEdit", self.red_edit[name])

    def _edited(self, output: Tensor, at: Strength) -> Tensor:
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        for name in self._active():
            if name in self.red_edit:
                wide = self._edit(name)(wide, at)
        # Without the cast back the residual stream turns float32 and the next half-precision layer fails.
        return wide.to(output.dtype)

    @torch.no_grad()
    def _folded(self, base: nn.Linear, names: list[str], at: float) -> tuple[Tensor, Tensor | None]:
        weight, bias = base.weight.float(), None if base.bias is None else base.bias.float()
        for name in names:
            scale, shift = self._edit(name).at(at)
            if scale is not None:
                # Conv1D stores its weight as in x out, Linear as out x in.
                weight = weight * (scale if isinstance(base, Conv1D) else scale[:, None])
                bias = None if bias is None else bias * scale
            if shift is not None:
                bias = shift if bias is None else bias + shift
        return weight, bias

    def _strength_to_merge(self, base: nn.Linear) -> float:
        if not base.weight.is_floating_point():
            raise ModelError("RED does not merge into a quantised layer; load the full-precision backbone for that.")
        if isinstance(self.strength, Tensor):
            raise ControlError("one strength per row cannot be merged into one weight; set a single strength first.")
        if self._before_merge is not None:
            self._refuse_turning(self._before_merge[2])
        return self.strength

    def _refuse_turning(self, merged_at: float) -> None:
        if isinstance(self.strength, Tensor) or self.strength != merged_at:
            raise ControlError(f"this edit is merged at strength {merged_at}; unmerge it before turning the dial.")


def _checked(value: Strength) -> Strength:
    if not isinstance(value, Tensor):
        if not math.isfinite(value):
            raise ControlError(f"a strength is a finite number, got {value}.")
        return float(value)
    if value.dim() != 1 or not bool(value.isfinite().all()):
        raise ControlError(f"strengths are finite and of shape (batch,), got shape {tuple(value.shape)}.")
    return value.detach().to(torch.float32)


def _per_row(strength_B: Tensor, output: Tensor) -> Tensor:
    if output.dim() == 2 and output.shape[0] % len(strength_B) == 0:
        # OPT's feed-forward sees the tokens of all rows after one another.
        strength_B = strength_B.repeat_interleave(output.shape[0] // len(strength_B))
    if strength_B.shape[0] != output.shape[0]:
        given, rows = strength_B.shape[0], output.shape[0]
        raise ControlError(f"{given} strengths were given for a batch of {rows} rows; give one number, or one per row.")
    return strength_B.to(output.device, torch.float32).view(-1, *[1] * (output.dim() - 1))
