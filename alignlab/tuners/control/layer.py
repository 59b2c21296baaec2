"""The layers of a control: vectors in place of placeholder ids, and a LoRA per class with a class per row.

Source: MEET (arXiv 2310.00819), section 3; where its paper is silent, our choice. Shapes: R rows of a pass, T time, D width,
C classes, M vectors per class, K rank of a LoRA, I and O width of its input and output.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ControlError, ModelError
from alignlab.models.strength import WITHOUT, Strength
from alignlab.tuners.control.config import ControlConfig
from alignlab.tuners.peft_tuner import Float32, temporarily
from alignlab.tuners.placeholders import PlaceholderEmbedding, VectorTable, slots


def class_at(module: nn.Module, value: Strength) -> AbstractContextManager[None]:
    """Sets the class of every LoRA below `module`: its number for all rows, or one per row; -1 is none."""
    return temporarily("setting", value, [layer for layer in module.modules() if isinstance(layer, ControlLora)])


class ControlTable(VectorTable):
    """One adapter's vectors, table of shape (C, M, D), and the ids that they stand in for, ids_C."""

    ids_C: Tensor

    def __init__(self, base: nn.Embedding, config: ControlConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(_start(base, config).detach().float().clone())
        self.register_buffer("ids_C", torch.tensor(config.placeholders, device=base.weight.device), persistent=False)

    def forward(self, ids_RT: Tensor, embedded_RTD: Tensor) -> Tensor:
        """The embedded input with the n-th placeholder of a class replaced by its n-th vector. Raises ControlError as `slots`
        does."""
        classes, vectors, _ = self.table.shape
        found = slots(ids_RT, self.ids_C, [vectors] * classes)
        if found is None:
            return embedded_RTD
        hit_RTC, slot_RT = found
        class_RT = hit_RTC.long().argmax(-1)
        put_RTD = self.table[class_RT, slot_RT].to(embedded_RTD.dtype)
        return torch.where(hit_RTC.any(-1, keepdim=True), put_RTD, embedded_RTD)


class ControlFactors(Float32):
    """One adapter's LoRA of every class at one layer: A of shape (C, K, I), B of shape (C, O, K), B = 0 at the start."""

    def __init__(self, base: nn.Module, config: ControlConfig) -> None:
        super().__init__()
        inner, outer = _widths(base)
        classes, device = len(config.classes), next(base.parameters()).device
        self.A = nn.Parameter(torch.empty(classes, config.rank, inner, device=device))
        self.B = nn.Parameter(torch.zeros(classes, outer, config.rank, device=device))
        for matrix in self.A:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))  # as peft does
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_RTI: Tensor, at: Strength) -> Tensor:
        """(alpha / K) B_c A_c x for the class c of all rows, or of each; zero for rows without one."""
        wide_RTI = self.dropout(x_RTI.to(self.A.dtype))
        if not isinstance(at, Tensor):
            number = int(at)
            return wide_RTI @ self.A[number].T @ self.B[number].T * self.scale
        if len(at) != len(x_RTI):
            raise ControlError(f"{len(at)} classes were given for {len(x_RTI)} rows of a pass; give one, or one per row.")
        number_R = at.long().clamp(min=0)
        update_RTO = torch.bmm(torch.bmm(wide_RTI, self.A[number_R].mT), self.B[number_R].mT) * self.scale
        return torch.where((at == WITHOUT)[:, None, None], 0.0, update_RTO)

    def folded(self, number: int) -> Tensor:
        """What a class adds to the weight, (O, I)."""
        return self.B[number] @ self.A[number] * self.scale


class ControlEmbedding(PlaceholderEmbedding):
    """The input embedding; placeholder ids come out as the vectors of their class."""

    adapter_layer_names = ("control_table",)

    def table(self, config: PeftConfig) -> ControlTable:
        """The vectors of a new control."""
        assert isinstance(config, ControlConfig)
        return ControlTable(self.base_layer, config)


class ControlLora(nn.Module, BaseTunerLayer):
    """A linear map whose output gets the LoRA of the class that is set: `setting`, for all rows or one per row."""

    adapter_layer_names = ("control_lora",)
    active_adapters: list[str]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: ControlConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.control_lora = nn.ModuleDict()
        self.setting: Strength = WITHOUT
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: ControlConfig) -> None:
        """Add an adapter that changes nothing yet."""
        self.control_lora[adapter_name] = ControlFactors(self.base_layer, config)
        BaseTunerLayer.set_adapter(self, self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x_RTI: Tensor) -> Tensor:
        """The output (R, T, O), with the update of each row's class. Raises ControlError for another number of rows."""
        output_RTO = cast("Tensor", self.base_layer(x_RTI))
        without = not isinstance(self.setting, Tensor) and self.setting == WITHOUT
        if self.disable_adapters or without or self.merged:
            return output_RTO
        for name in self.active_adapters:
            if name in self.control_lora:
                update_RTO = cast("ControlFactors", self.control_lora[name])(x_RTI, self.setting)
                output_RTO = output_RTO + update_RTO.to(output_RTO.dtype)
        return output_RTO

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Folds the class that is set into the weight. Raises ControlError where none is, or one per row."""
        if isinstance(self.setting, Tensor) or self.setting == WITHOUT:
            raise ControlError("one class is merged into the weights, and none is set, or one per row; set it with class_at.")
        base = cast("nn.Linear", self.base_layer)
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.control_lora:
                update_OI = cast("ControlFactors", self.control_lora[name]).folded(int(self.setting))
                # Conv1D stores its weight as in x out, Linear as out x in.
                update = update_OI.T if isinstance(base, Conv1D) else update_OI
                base.weight.data = (base.weight.float() + update).to(base.weight.dtype)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Raises ModelError: what was folded in is not kept beside."""
        raise ModelError("a merged class cannot be taken out again; load the adapter anew.")


def _start(base: nn.Embedding, config: ControlConfig) -> Tensor:
    """Where the vectors start, (C, M, D): embeddings of phrases repeated or cut, of drawn ids, or normal like embeddings."""
    shape = (len(config.classes), config.length)
    device = base.weight.device
    if config.init == "random":
        spread = 0.02 if base.weight.is_meta else float(base.weight.detach().float().std())
        return torch.randn(*shape, base.embedding_dim).to(device) * spread
    if config.init == "vocabulary":
        ids_CM = torch.randint(base.num_embeddings, shape)
    else:
        ids_CM = torch.tensor([(ids * config.length)[: config.length] for ids in config.phrases])
    # Through the module, since some models scale what they look up.
    return cast("Tensor", base(ids_CM.to(device)))


def _widths(base: nn.Module) -> tuple[int, int]:
    if isinstance(base, Conv1D):
        return int(base.weight.shape[0]), int(base.nf)
    if isinstance(base, nn.Linear):
        return base.in_features, base.out_features
    raise ModelError(f"a LoRA control sits on Linear and Conv1D layers; control.targets names a {type(base).__name__}.")
