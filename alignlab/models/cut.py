"""A model in two: ids to states, states to logits, so that logits are made at the positions that are scored, in chunks.

Shapes: R rows, T time, K tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignlab.models.anatomy import text_config, trunk_of
from alignlab.models.layout import Layout
from alignlab.models.segments import attending

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Cut:
    """`states`: (model, inputs) to R,T,D. `head`: (model, K,D) to K,V. Where a model has no such place, states are logits."""

    name: str
    states: Callable[..., Tensor]
    head: Callable[[PreTrainedModel, Tensor], Tensor]

    def through(self, model: PreTrainedModel, layout: Layout) -> Tensor:
        """The states of all rows, R,T,D."""
        inputs: dict[str, Any] = {"input_ids": layout.ids_RT, "attention_mask": layout.mask, "use_cache": False}
        if layout.positions_RT is not None:
            inputs["position_ids"] = layout.positions_RT
        with attention_of(model, layout):
            return self.states(model, **inputs)


def attention_of(model: PreTrainedModel, layout: Layout) -> AbstractContextManager[None]:
    """Inside, the model attends as the rows need it; also where its blocks are computed again for a gradient."""
    return nullcontext() if layout.segments is None else attending(text_config(model.config), layout.segments)


class _Handed(tuple[Any, ...]):
    """What a trunk would have returned: hidden states, and nothing else that a head might ask for."""

    def __getattr__(self, name: str) -> Any:
        return self[0] if name == "last_hidden_state" else None


def _trunk(model: PreTrainedModel, **inputs: Any) -> Tensor:
    states: Tensor = trunk_of(model)(**inputs).last_hidden_state
    return states


def _embedding(model: PreTrainedModel, hidden_KD: Tensor) -> Tensor:
    logits_KV: Tensor = model.get_output_embeddings()(hidden_KD)
    return logits_KV


def _own_head(model: PreTrainedModel, hidden_KD: Tensor) -> Tensor:
    """The model's forward, with a trunk that hands back the given states: caps and scales are the model's own code."""
    trunk = trunk_of(model)
    before = trunk.__dict__.get("forward")
    trunk.forward = lambda *_args, **_kwargs: _Handed((hidden_KD[None],))
    try:
        ids_1K = torch.zeros(1, len(hidden_KD), dtype=torch.long, device=hidden_KD.device)
        logits_KV: Tensor = model(input_ids=ids_1K, use_cache=False).logits[0]
    finally:
        del trunk.forward
        if before is not None:
            trunk.forward = before
    return logits_KV


def _whole(model: PreTrainedModel, **inputs: Any) -> Tensor:
    logits: Tensor = model(**inputs).logits
    return logits


def _as_they_are(_model: PreTrainedModel, logits_KV: Tensor) -> Tensor:
    return logits_KV


CUTS = (
    Cut("the output embedding", _trunk, _embedding),
    Cut("the model's own head", _trunk, _own_head),
    Cut("the whole model, at every position", _whole, _as_they_are),
)
"""In the order in which they are tried."""
