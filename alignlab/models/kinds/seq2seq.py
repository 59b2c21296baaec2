"""Encoder-decoder models: the prompt is the encoder's text, the response the decoder's.

An example is encoded as one row of ids, source then target, `start` being where the target begins, so that batching, references
and accounts treat it like any other. Shapes: R rows, S source time, U target time, K target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from alignlab.errors import DataError, ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.kinds import every_label, label_likelihoods, no_class_scores, token_nll
from alignlab.models.layout import Layout
from alignlab.models.probes import Abilities, of_rows
from alignlab.models.text import Codec, Template
from alignlab.records import Batch, Encoded, Example, LabelSet


class SourceTargetCodec(Codec):
    """Source and target are tokenised apart, each with the special tokens that the tokenizer itself puts there."""

    predicts_prompt = False

    def prompts(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of each source."""
        return [tuple(ids) for ids in self._sources([self.template.render(prompt, self.tokenizer) for prompt in prompts])]

    def answer(self, prompt: str, text: str) -> str:
        """The text itself: a source ends by itself, and nothing of it is left for the target."""
        del prompt
        return text

    def examples(self, examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
        """Source ids, then target ids with exactly one EOS. Raises DataError, with the row, for an empty target, for a text in
        front of the prompt, and for special tokens written out in a text."""
        for example, row in zip(examples, rows, strict=True):
            if example.prefix:
                raise DataError(f"{row}: an encoder-decoder model takes no text in front of its source; use a causal model.")
            if not example.response.strip():
                raise DataError(f"{row}: the response is empty; remove the row or give it a response.")
        if not examples:
            return []
        rendered = [self.template.render(example.prompt, self.tokenizer) for example in examples]
        sources = self._sources(rendered, [example.second for example in examples])
        targets = self.tokenizer(
            text_target=[example.response for example in examples], return_attention_mask=False, verbose=False
        )["input_ids"]
        return [
            Encoded((*self._whole(source, row), *self._ended(target, row)), len(source), head=self._kept_in_front(source))
            for source, target, row in zip(sources, targets, rows, strict=True)
        ]

    def _sources(self, texts: list[str], seconds: Sequence[str | None] = ()) -> list[list[int]]:
        if not texts:
            return []
        pairs = [f"{text} {second}" if second else text for text, second in zip(texts, seconds or [None] * len(texts))]
        return list(self.tokenizer(pairs, return_attention_mask=False, verbose=False)["input_ids"])

    def _whole(self, source: list[int], row: str) -> list[int]:
        if self.eos in source[:-1]:
            raise DataError(f"{row}: the source holds an EOS token as text; remove it, the tokenizer adds its own.")
        return source

    def _ended(self, target: list[int], row: str) -> list[int]:
        ended = target if target and target[-1] == self.eos else [*target, self.eos]
        if self.eos in ended[:-1]:
            raise DataError(f"{row}: the response holds an EOS token as text; remove it, alignlab adds its own.")
        return ended

    def _kept_in_front(self, source: Sequence[int]) -> int:
        return int(bool(source) and source[0] == self.tokenizer.bos_token_id)


class Seq2seq:
    """Target tokens are the decoder's."""

    auto = AutoModelForSeq2SeqLM
    nll = staticmethod(token_nll)
    class_scores = staticmethod(no_class_scores)
    choices = staticmethod(every_label)
    label_scores = staticmethod(label_likelihoods)

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Class names are texts like any other, so `labels` change nothing."""
        del labels
        return SourceTargetCodec(tokenizer, template)

    def abilities(self, backbone: Backbone) -> Abilities:
        """What a few short rows show."""
        return of_rows(backbone, self, "each row has a source of its own")

    def layout(self, backbone: Backbone, batch: Batch, shared: bool) -> Layout:
        """A row per member: the source padded on the right in `ids_RT`, and what the decoder reads in `decoder_RU`."""
        del shared
        groups, members, time = batch.ids_GMT.shape
        device = batch.ids_GMT.device
        ids_RT = batch.ids_GMT.reshape(-1, time)
        start_R1, length_R1 = batch.start_GM.reshape(-1, 1), batch.length_GM.reshape(-1, 1)
        sources, targets = int(start_R1.max()), int((length_R1 - start_R1).max())
        mask_RS = (torch.arange(sources, device=device) < start_R1).long()
        place_RU = start_R1 + torch.arange(targets, device=device)
        target_RU = ids_RT.gather(1, place_RU.clamp(max=time - 1))
        row_K, time_K = (place_RU < length_R1).nonzero(as_tuple=True)
        first_R1 = torch.full_like(start_R1, _first_token(backbone))
        return Layout(
            ids_RT=ids_RT[:, :sources].where(mask_RS.bool(), backbone.codec.pad),
            positions_RT=None,
            mask=mask_RS,
            row_K=row_K,
            time_K=time_K,
            state_K=time_K,
            target_K=target_RU[row_K, time_K],
            member_K=row_K,
            group_R=torch.arange(groups, device=device).repeat_interleave(members),
            segments=None,
            decoder_RU=torch.cat([first_R1, target_RU[:, :-1]], dim=1),
        )

    def hidden(self, backbone: Backbone, layout: Layout) -> Tensor:
        """The model's own logits of the target tokens, K,V: every position of the decoder predicts one, so none is wasted."""
        output = backbone.model(
            input_ids=layout.ids_RT, attention_mask=layout.mask, decoder_input_ids=layout.decoder_RU, use_cache=False
        )
        logits_KV: Tensor = output.logits[layout.row_K, layout.time_K]
        return logits_KV

    def head(self, backbone: Backbone, hidden_KD: Tensor) -> Tensor:
        """They are logits already."""
        del backbone
        return hidden_KD

    def outputs(self, backbone: Backbone, layout: Layout) -> Tensor:
        """Logits, K,V."""
        return self.hidden(backbone, layout)

    def states(self, backbone: Backbone, layout: Layout, layers: Sequence[int]) -> Tensor:
        """Raises ModelError: which of its two stacks is meant is not defined."""
        raise ModelError(f"hidden states by layer are read of causal models, and model={backbone.name} has two stacks.")


def _first_token(backbone: Backbone) -> int:
    """What a decoder begins with. Raises ModelError where the checkpoint does not say."""
    first = backbone.model.generation_config.decoder_start_token_id  # type: ignore[union-attr]
    first = backbone.model.config.decoder_start_token_id if first is None else first
    if first is None:
        raise ModelError(f"model={backbone.name} names no decoder_start_token_id; set it in the checkpoint's config.json.")
    return int(first)
