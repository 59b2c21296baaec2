"""Prompt tuning (arXiv 2104.08691) as PEFT builds and saves it: learned vectors in front of every text.

PEFT puts them there in its own forward, where a policy does not pass: batches, packing and caches are the policy's. So a pass
puts ids into the texts as for a control (`Prefix`), and the input embedding gives out PEFT's vectors for them. The ids are
negative, so no text holds them. An encoder-decoder model reads them in front of the encoder's text.
Shapes: R rows, T time, D width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from peft import PromptTuningConfig, PromptTuningInit
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.models.strength import Inserted, Prefix, Strength, WeightedPass
from alignlab.tuners.config import PromptTunerConfig
from alignlab.tuners.peft_tuner import AroundLayer, PeftTuner
from alignlab.tuners.tuner import mixed_logits

_INITS = {"vocabulary": PromptTuningInit.SAMPLE_VOCAB, "random": PromptTuningInit.RANDOM}


class PromptedEmbedding(AroundLayer):
    """An input embedding, and PEFT's vectors by adapter: id -1 - n stands for the n-th of the adapter `active`."""

    def __init__(self, base_layer: nn.Module, prompts: nn.ModuleDict, active: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.prompts = prompts
        self.active = active

    def forward(self, ids_RT: Tensor) -> Tensor:
        """Embeddings of shape (R, T, D)."""
        embedded_RTD = cast("Tensor", self.base_layer(ids_RT.clamp(min=0)))
        put_RT = ids_RT < 0
        if not bool(put_RT.any()):
            return embedded_RTD
        vectors_RTD = cast("Tensor", self.prompts[self.active]((-1 - ids_RT).clamp(min=0)))
        return torch.where(put_RT[..., None], vectors_RTD.to(embedded_RTD.dtype), embedded_RTD)


class PromptTuner(PeftTuner):
    """z(s) = s z(with the vectors) + (1 - s) z(without), at the logits; our choice, prompt tuning has no strength."""

    starts_as_base = False

    def _find(self) -> None:
        super()._find()
        config: Any = self.module.active_peft_config
        self.inserted = Inserted(config.num_virtual_tokens)
        self.prefix = Prefix(tuple(range(-1, -1 - config.num_virtual_tokens, -1)))
        self.default_passes = self.passes(1.0)
        model: Any = self.module.get_base_model()
        reads = model.get_encoder() if model.config.is_encoder_decoder else model
        embedding = reads.get_input_embeddings()
        if isinstance(embedding, PromptedEmbedding):
            return
        prompted = PromptedEmbedding(embedding, cast("nn.ModuleDict", self.module.prompt_encoder), self.module.active_adapter)
        for name, module in [*reads.named_modules(remove_duplicate=False)]:
            if module is embedding:
                parent, _, child = name.rpartition(".")
                setattr(reads.get_submodule(parent), child, prompted)

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """With the vectors, without them, or both; one pass at exactly 0 and 1."""
        return tuple(replace(each, prefix=self.prefix) if each.setting == 1.0 else each for each in mixed_logits(strength))

    def edited(self, setting: Strength) -> AbstractContextManager[None]:
        """The vectors stand in the text, or do not."""
        del setting
        return nullcontext()


def build(config: PromptTunerConfig, model: PreTrainedModel) -> PromptTuner:
    """Puts `length` vectors in front of every text, at their start."""
    return PromptTuner(
        model,
        PromptTuningConfig(
            num_virtual_tokens=config.length, prompt_tuning_init=_INITS[config.init], num_transformer_submodules=1
        ),
    )
