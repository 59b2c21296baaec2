"""Causal language models: prompt and response are one text, and every token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignlab.models.anatomy import rotary_switch
from alignlab.models.backbone import Backbone
from alignlab.models.kinds import every_label, label_likelihoods, no_class_scores, token_nll
from alignlab.models.layout import Layout, one_row_per_member, without_padding
from alignlab.models.probes import Abilities, find
from alignlab.models.text import Codec, Template
from alignlab.records import Batch, LabelSet


class Causal:
    """Target tokens are those of the response. Shapes: R rows, T time, K target tokens, D width, V vocabulary, L layers."""

    auto = AutoModelForCausalLM
    nll = staticmethod(token_nll)
    class_scores = staticmethod(no_class_scores)
    choices = staticmethod(every_label)
    label_scores = staticmethod(label_likelihoods)

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Class names are texts like any other, so `labels` change nothing."""
        del labels
        return Codec(tokenizer, template)

    def abilities(self, backbone: Backbone) -> Abilities:
        """What a few short rows show."""
        return find(backbone.name, backbone.model)

    def layout(self, backbone: Backbone, batch: Batch, shared: bool) -> Layout:
        """A row per member; or all tokens in a single row with each shared prefix once, where the model can do that."""
        able = backbone.abilities
        unlike = _frequencies_differ(rotary_switch(backbone.model.config), batch)
        if shared and not able.packed and not unlike:
            return without_padding(batch, backbone.model.dtype)
        rows = one_row_per_member(batch, masked=bool(able.unmasked))
        return replace(rows, alone=True) if unlike else rows

    def hidden(self, backbone: Backbone, layout: Layout) -> Tensor:
        """States at the positions that predict the response tokens, K,D."""
        return backbone.abilities.cut.through(backbone.model, layout)[layout.row_K, layout.time_K]

    def head(self, backbone: Backbone, hidden_KD: Tensor) -> Tensor:
        """Logits, K,V."""
        return backbone.abilities.cut.head(backbone.model, hidden_KD)

    def outputs(self, backbone: Backbone, layout: Layout) -> Tensor:
        """Logits, K,V."""
        return self.head(backbone, self.hidden(backbone, layout))

    def states(self, backbone: Backbone, layout: Layout, layers: Sequence[int]) -> Tensor:
        """Outputs of blocks `layers` at the response tokens, L,K,D."""
        with backbone.reading(layers) as kept:
            backbone.abilities.cut.through(backbone.model, layout)
        return torch.stack([kept[layer][layout.row_K, layout.state_K] for layer in layers])


def _frequencies_differ(switch: int | None, batch: Batch) -> bool:
    """Whether rows of one pass would get each other's rotary frequencies: some are longer than `switch`, others not."""
    return switch is not None and int(batch.length_GM.min()) <= switch < int(batch.length_GM.max())
