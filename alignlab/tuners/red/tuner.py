"""RED (arXiv 2402.15179): h2 = s * h1 + l (eq. 3) on a frozen layer's output, as a PEFT method and as a tuner with a strength.

Shapes: B rows of the batch, D width of the edited output.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge, check_target_module_exists
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.models.strength import Strength, checked_strengths
from alignlab.tuners.config import EDITS, RedTunerConfig
from alignlab.tuners.peft_tuner import Float32, LayerModel, PeftTuner, peft_type, per_row, strengths_at
from alignlab.tuners.targets import EXPERTS, RED_PLUS_TARGETS, RED_TARGETS, matched


@dataclass
class RedConfig(PeftConfig):
    """The configuration of a RED adapter.

    No field may be called `bias`: PEFT reads one of that name as "which biases of the base to train and save".

    Raises:
        ConfigError: `edit` is unknown, or `layers_pattern` is given without `layers_to_transform`.
    """

    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Suffixes or one full-match pattern; None: RED's place in this type of model."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Suffixes or one full-match pattern of modules to leave alone."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the blocks to edit; None: all. Works with patterns as well."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list that holds the blocks, where the first index is not theirs."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules beside the edit that are trained and saved, such as a new head."}
    )
    edit: str = field(default="both", metadata={"help": "What is learned: both, scale or shift."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type("RED")
        if self.edit not in EDITS:
            raise ConfigError(f"unknown edit {self.edit!r} for RED; known: {', '.join(EDITS)}.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("RED's layers_pattern needs layers_to_transform: name the indices of the blocks to edit.")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)


def red_targets(model_type: str) -> str:
    """The full-match pattern of RED's place, the feed-forward output of every block, for a transformers model type."""
    return _place("RED", RED_TARGETS, model_type)


def red_plus_targets(model_type: str) -> str:
    """The full-match pattern of RED+'s five places per block for a transformers model type."""
    return _place("RED+", RED_PLUS_TARGETS, model_type)


def _place(method: str, table: Mapping[str, str], model_type: str) -> str:
    if model_type in EXPERTS:
        raise ModelError(
            f"{method} edits the output of a feed-forward layer, and models of type {model_type!r} have experts instead,"
            " which are no layers of their own; give tuner.targets (target_modules), such as self_attn.o_proj, or tuner=lora."
        )
    if model_type not in table:
        raise ModelError(
            f"{method} has no known place in models of type {model_type!r} (known: {', '.join(sorted(table))}); give "
            "tuner.targets, in peft target_modules: the names of the layers to edit, such as ['mlp.down_proj'], or one pattern."
        )
    return table[model_type]


class RedEdit(Float32):
    """One adapter's vectors at one layer: `scale` and `shift` of shape (D,), None where not learned.

    Always float32: near 1.0 bfloat16 is so coarse that an AdamW step of 1e-3 is rounded away every time.
    """

    scale: nn.Parameter | None
    shift: nn.Parameter | None

    def __init__(self, width_D: int, edit: str) -> None:
        super().__init__()
        ones, zeros = torch.ones(width_D, dtype=torch.float32), torch.zeros(width_D, dtype=torch.float32)
        self.register_parameter("scale", nn.Parameter(ones) if edit != "shift" else None)
        self.register_parameter("shift", nn.Parameter(zeros) if edit != "scale" else None)

    def forward(self, h1: Tensor, strength: Strength) -> Tensor:
        """h2 = s(c) * h1 + l(c) for h1 of shape (B, ..., D), with strength c a number or of shape (B, 1, ..., 1)."""
        scale, shift = self.at(strength)
        scaled = h1 if scale is None else h1 * scale
        return scaled if shift is None else scaled + shift

    def at(self, strength: Strength) -> tuple[Tensor | None, Tensor | None]:
        """s(c) = 1 + c (s - 1) and l(c) = c l; at c = 1 the stored s, which 1 + (s - 1) does not give bit for bit."""
        shift = None if self.shift is None else strength * self.shift.float()
        if self.scale is None:
            return None, shift
        stored = self.scale.float()
        scaled = 1 + strength * (stored - 1)
        if isinstance(strength, Tensor):
            return torch.where(strength == 1, stored, scaled), shift
        return stored if strength == 1 else scaled, shift


class RedLayer(nn.Module, BaseTunerLayer):
    """A frozen Linear or Conv1D whose output is edited by the active adapters, in their order."""

    # A ModuleDict of small modules, never a ParameterDict: TRL copies adapters by looking for `.<adapter>.` in names.
    adapter_layer_names = ("red_edit",)
    active_adapters: list[str]
    base_layer: nn.Linear  # a Conv1D reads the same way, but for its width and the layout of its weight

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: RedConfig) -> None:
        super().__init__()
        self.base_layer = cast("nn.Linear", base_layer)
        self.red_edit = nn.ModuleDict()
        self.strength: Strength = 1.0
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self._before_merge: tuple[Tensor, nn.Parameter | None, float] | None = None  # weight, bias, strength
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: RedConfig) -> None:
        """Adds an adapter that changes nothing yet: s = 1, l = 0."""
        base = self.base_layer
        self.red_edit[adapter_name] = RedEdit(base.nf if isinstance(base, Conv1D) else base.out_features, config.edit)
        BaseTunerLayer._move_adapter_to_device_of_base_layer(self, adapter_name)
        BaseTunerLayer.set_adapter(self, self.active_adapters, inference_mode=config.inference_mode)

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
            self._refuse_other_than(self._before_merge[2])
            return output
        if isinstance(self.strength, Tensor):
            rows_B11 = per_row(self.strength, output)
            # At 0 the base output itself: 1 * y + 0 would lose the sign of a zero.
            return torch.where(rows_B11 == 0, output, self._edited(output, rows_B11))
        return output if self.strength == 0 else self._edited(output, self.strength)

    def _edited(self, output: Tensor, strength: Strength) -> Tensor:
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        for name in self.active_adapters:
            if name in self.red_edit:
                wide = self.red_edit[name](wide, strength)
        # Without the cast back the residual stream turns float32 and the next half-precision layer fails.
        return wide.to(output.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Folds the edit, at the present strength, into the base: W <- diag(s) W, b <- s * b + l.

        A base without a bias gets one. Computed in float32, then cast; the original is kept until `unmerge`.

        Raises:
            ModelError: the base is quantised, or with `safe_merge` a merged weight is not finite.
            ControlError: the strength is one per row, or other than that of an earlier merge.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.red_edit]
        if not names:
            return
        base, strength = self.base_layer, self.strength
        if not base.weight.is_floating_point():
            raise ModelError("RED does not merge into a quantised layer; load the full-precision backbone for that.")
        if isinstance(strength, Tensor):
            raise ControlError("one strength per row cannot be merged into one weight; set a single strength first.")
        if self._before_merge is not None:
            self._refuse_other_than(self._before_merge[2])
        weight, bias = self._folded(names, strength)
        if safe_merge and not all(bool(tensor.isfinite().all()) for tensor in (weight, bias) if tensor is not None):
            raise ModelError(f"merging {', '.join(names)} gives weights that are not finite; the adapter is broken.")
        if self._before_merge is None:
            self._before_merge = (base.weight.data, base.bias, strength)
        base.weight.data = weight.to(base.weight.dtype)
        if bias is not None:
            # A new parameter, so that the kept one stays as it was.
            base.bias = nn.Parameter(bias.to(base.weight.dtype), requires_grad=False)
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def _folded(self, names: list[str], strength: float) -> tuple[Tensor, Tensor | None]:
        base = self.base_layer
        weight, bias = base.weight.float(), None if base.bias is None else base.bias.float()
        for name in names:
            scale, shift = cast("RedEdit", self.red_edit[name]).at(strength)
            if scale is not None:
                # Conv1D stores its weight as in x out, Linear as out x in.
                weight = weight * (scale if isinstance(base, Conv1D) else scale[:, None])
                bias = None if bias is None else bias * scale
            if shift is not None:
                bias = shift if bias is None else bias + shift
        return weight, bias

    def unmerge(self) -> None:
        """Puts the original weight and bias back, bit for bit; no division, which a scale of zero would defeat."""
        if self._before_merge is None:
            warnings.warn("this RED edit is not merged; nothing to undo.", stacklevel=2)
            return
        base = self.base_layer
        weight, bias, _ = self._before_merge
        # The model may have changed its device or dtype since.
        base.weight.data = weight.to(base.weight)
        if bias is not None:
            bias.data = bias.data.to(base.weight)
        base.register_parameter("bias", bias)
        self._before_merge = None
        self.merged_adapters.clear()

    def _refuse_other_than(self, merged_at: float) -> None:
        if isinstance(self.strength, Tensor) or self.strength != merged_at:
            raise ControlError(f"this edit is merged at strength {merged_at}; unmerge it before turning the dial.")


def strength(module: nn.Module, value: Strength) -> AbstractContextManager[None]:
    """Sets the strength of every RED edit below `module`, and puts the old ones back on leaving, errors included.

    0 is the backbone, 1 the trained model, other values inter- and extrapolate (our choice; the paper has no strength).
    With gradient checkpointing the backward pass runs the layers again: keep it inside the context.

    Raises:
        ControlError: there is no edit below `module`, or `value` is not a finite number or a tensor of shape (B,).
    """
    layers = [layer for layer in module.modules() if isinstance(layer, RedLayer)]
    if not layers:
        raise ControlError(f"{type(module).__name__} carries no RED edit, so there is no strength to set.")
    if isinstance(value, Tensor) and value.dim() != 1:
        raise ControlError(f"strengths are finite and of shape (batch,), got shape {tuple(value.shape)}.")
    checked_strengths(value)
    return strengths_at(layers, value)


class RedModel(LayerModel):
    """RED as a PEFT method: `get_peft_model`, saving, loading, merging and several adapters come from PEFT."""

    prefix = "red_"
    tuner_layer_cls = RedLayer

    def inject_adapter(self, model: nn.Module, adapter_name: str, *rest: Any, **more: Any) -> None:
        """Puts the edit on every matching layer. Raises ModelError, with the nearest names, where nothing matches."""
        try:
            super().inject_adapter(model, adapter_name, *rest, **more)
        except NoMatchingPeftModuleError as error:
            wanted = self.peft_config[adapter_name].target_modules
            wanted = [wanted] if isinstance(wanted, str) else sorted(wanted or ())
            layers = (name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)))
            known = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in layers})
            near = [close for each in wanted for close in get_close_matches(each, known, n=3, cutoff=0.4)] or known[:8]
            raise ModelError(
                f"RED found no layer for target_modules {', '.join(wanted)}; nearest here: {', '.join(near)}."
            ) from error

    def _prepare_adapter_config(self, peft_config: RedConfig, model_config: dict[str, Any]) -> RedConfig:  # type: ignore[override]
        if peft_config.target_modules is None:
            peft_config.target_modules = red_targets(str(model_config.get("model_type")))
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: RedConfig, key: str) -> object:  # type: ignore[override]
        """PEFT's matching, plus `layers_to_transform` for patterns too, which PEFT ignores without a message."""
        found = check_target_module_exists(peft_config, key)
        layers, pattern = peft_config.layers_to_transform, peft_config.layers_pattern
        if not found or layers is None or not isinstance(peft_config.target_modules, str):
            return found
        # A block's index is the first number in its name, or the one behind one of the named lists.
        lists = [r"[^.]+"] if not pattern else [pattern] if isinstance(pattern, str) else pattern
        index = re.search(rf"(?:^|\.)(?:{'|'.join(lists)})\.(\d+)\.", key)
        return index is not None and int(index.group(1)) in ([layers] if isinstance(layers, int) else layers)

    def around(self, target: nn.Module, parent: nn.Module, name: str, adapter_name: str, config: PeftConfig) -> nn.Module:
        """Raises ModelError for a module that is neither Linear nor Conv1D."""
        if not isinstance(target, (nn.Linear, Conv1D)):
            raise ModelError(f"RED edits the output of Linear and Conv1D layers; {name} is a {type(target).__name__}.")
        return super().around(target, parent, name, adapter_name, config)


class RedTuner(PeftTuner):
    """s(c) = 1 + c (s - 1), l(c) = c l: 0 is the backbone, 1 the trained model; one strength per row if asked."""

    def edited(self, setting: Strength) -> AbstractContextManager[None]:
        """Every edit at this strength."""
        return strengths_at(self.layers, setting)


def build(config: RedTunerConfig, model: PreTrainedModel) -> RedTuner:
    """Attaches the edits to the named layers, or at RED's or RED+'s places for this type of model.

    Raises ConfigError for targets that the model does not have, ModelError for a type of model whose places are not known.
    """
    if config.targets is not None:
        matched(model, config.targets, "tuner.targets")
        return RedTuner(model, RedConfig(target_modules=config.targets, edit=config.edit))
    places = red_plus_targets if config.place == "plus" else red_targets
    return RedTuner(model, RedConfig(target_modules=places(model.config.model_type), edit=config.edit))
