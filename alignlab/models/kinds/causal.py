"""Causal language models: prompt and response are one text, and every token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignlab.models.backbone import Backbone
from alignlab.models.layout import Layout, one_row_per_member, without_padding
from alignlab.models.segments import attending_in_segments
from alignlab.records import Batch


class Causal:
    """Target tokens are those of the response. Shapes: R rows, T time, K target tokens, D width, V vocabulary, L layers."""

    task_type = "CAUSAL_LM"
    auto = AutoModelForCausalLM

    def layout(self, backbone: Backbone, batch: Batch, shared: bool) -> Layout:
        """A row per member, or all tokens in a single row with each shared prefix once."""
        return without_padding(batch, backbone.model.dtype) if shared else one_row_per_member(batch)

    def hidden(self, backbone: Backbone, layout: Layout) -> Tensor:
        """Final hidden states at the positions that predict the response tokens, K,D."""
        return self._trunk(backbone, layout)[layout.row_K, layout.time_K]

    def head(self, backbone: Backbone, hidden_KD: Tensor) -> Tensor:
        """Logits, K,V."""
        logits_KV: Tensor = backbone.head(hidden_KD)
        return logits_KV

    def states(self, backbone: Backbone, layout: Layout, layers: Sequence[int]) -> Tensor:
        """Outputs of blocks `layers` at the response tokens, L,K,D."""
        with backbone.reading(layers) as kept:
            self._trunk(backbone, layout)
        return torch.stack([kept[layer][layout.row_K, layout.state_K] for layer in layers])

    def _trunk(self, backbone: Backbone, layout: Layout) -> Tensor:
        """Final hidden states of all rows, R,T,D."""
        more: dict[str, Any] = {}
        inside: AbstractContextManager[None] = nullcontext()
        if layout.segments is not None:
            more, inside = {"segments": layout.segments}, attending_in_segments(backbone.model.config)
        with inside:
            output = backbone.trunk(
                input_ids=layout.ids_RT,
                attention_mask=layout.mask,
                position_ids=layout.positions_RT,
                use_cache=False,
                **more,
            )
        hidden_RTD: Tensor = output.last_hidden_state
        return hidden_RTD
