"""How encoders and encoder-decoder models are pretrained: a text with gaps, and the tokens that fill them.

Which tokens are left out depends on the row alone. Ids are the text with its gaps, then what belongs into them, `start` being
the length of the first part. Shapes as in seq2seq.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from alignlab.errors import ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.kinds import every_label, label_likelihoods, no_class_scores, token_nll
from alignlab.models.kinds.seq2seq import Seq2seq, SourceTargetCodec
from alignlab.models.layout import Layout
from alignlab.models.probes import Abilities, of_rows
from alignlab.models.text import Codec, Template
from alignlab.records import Batch, Encoded, Example, LabelSet

SHARE = 0.15
"""Of the tokens that are left out (BERT, arXiv 1810.04805; T5, arXiv 1910.10683)."""
SPAN_TOKENS = 3
"""Mean length of a span that is left out (T5, section 3.3.4)."""


class MaskedCodec(SourceTargetCodec):
    """Every gap is one mask token; all chosen tokens become masks (BERT leaves a fifth of them as they are, or wrong)."""

    def examples(self, examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
        """Prompt and response as one text with gaps, then the tokens of the gaps in order."""
        return [self._corrupted(ids, row) for ids, row in zip(_whole_texts(self, examples), rows, strict=True)]

    def _corrupted(self, ids: list[int], row: str) -> Encoded:
        inner = [place for place, token in enumerate(ids) if token not in self.tokenizer.all_special_ids]
        gaps = sorted(Random(f"masked/{row}").sample(inner, max(1, round(SHARE * len(inner)))))
        source = [self.tokenizer.mask_token_id if place in gaps else token for place, token in enumerate(ids)]
        return Encoded((*source, *(ids[place] for place in gaps)), len(source))


class SpanCodec(SourceTargetCodec):
    """Every gap is a sentinel token, which in the target stands in front of what it hides; a last one ends the target."""

    def examples(self, examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
        """Prompt and response as one text with gaps, then the sentinels with the tokens that they hide."""
        return [self._corrupted(ids, row) for ids, row in zip(_whole_texts(self, examples), rows, strict=True)]

    def _corrupted(self, ids: list[int], row: str) -> Encoded:
        vocabulary = self.tokenizer.get_vocab()
        known = [vocabulary[name] for name in (f"<extra_id_{number}>" for number in range(100)) if name in vocabulary]
        sentinels = iter(known)
        body = ids[:-1] if ids[-1] == self.eos else ids
        random = Random(f"spans/{row}")
        spans = min(max(1, round(SHARE * len(body) / SPAN_TOKENS)), len(known) - 1)  # the last sentinel ends the target
        # One span in each of equal parts of the text, so that no two meet.
        edges = [round(part * len(body) / spans) for part in range(spans + 1)]
        source: list[int] = []
        target: list[int] = []
        for first, behind in pairwise(edges):
            length = min(random.randint(1, 2 * SPAN_TOKENS - 1), behind - first)
            begin = random.randint(first, behind - length)
            sentinel = next(sentinels)
            source += [*body[first:begin], sentinel, *body[begin + length : behind]]
            target += [sentinel, *body[begin : begin + length]]
        source += ids[len(body) :]
        return Encoded((*source, *target, next(sentinels), self.eos), len(source))


class Masked:
    """A masked language model (arXiv 1810.04805): each mask predicts what it hides."""

    auto = AutoModelForMaskedLM
    nll = staticmethod(token_nll)
    class_scores = staticmethod(no_class_scores)
    choices = staticmethod(every_label)
    label_scores = staticmethod(label_likelihoods)

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Raises ModelError for a tokenizer without a mask token."""
        del labels
        if tokenizer.mask_token_id is None:
            raise ModelError("model.kind=masked needs a tokenizer with a mask token; set mask_token in its config.")
        return MaskedCodec(tokenizer, template)

    def abilities(self, backbone: Backbone) -> Abilities:
        """What a few short rows show."""
        return of_rows(backbone, self, "every token of a row is read at once")

    def layout(self, backbone: Backbone, batch: Batch, shared: bool) -> Layout:
        """A row per text; the target tokens stand behind it in the batch, in the order of its masks."""
        del shared
        groups, members, time = batch.ids_GMT.shape
        device = batch.ids_GMT.device
        ids_RT = batch.ids_GMT.reshape(-1, time)
        clock_T = torch.arange(time, device=device)
        start_R1, length_R1 = batch.start_GM.reshape(-1, 1), batch.length_GM.reshape(-1, 1)
        inside_RT = clock_T < start_R1
        masks_RT = inside_RT & (ids_RT == backbone.codec.tokenizer.mask_token_id)
        row_K, time_K = masks_RT.nonzero(as_tuple=True)
        return Layout(
            ids_RT=ids_RT.where(inside_RT, backbone.codec.pad),
            positions_RT=None,
            mask=inside_RT.long(),
            row_K=row_K,
            time_K=time_K,
            state_K=time_K,
            target_K=ids_RT[(clock_T >= start_R1) & (clock_T < length_R1)],
            member_K=row_K,
            group_R=torch.arange(groups, device=device).repeat_interleave(members),
            segments=None,
        )

    def hidden(self, backbone: Backbone, layout: Layout) -> Tensor:
        """The model's own logits at the masks, K,V."""
        output = backbone.model(input_ids=layout.ids_RT, attention_mask=layout.mask)
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
        """Raises ModelError: a masked model is pretrained, and not read."""
        raise ModelError(f"model={backbone.name} is pretrained here (model.kind=masked); hidden states are not read of it.")


class Spans(Seq2seq):
    """T5's span corruption (arXiv 1910.10683): the decoder says what the sentinels hide."""

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Raises ModelError for a tokenizer without sentinels."""
        del labels
        if "<extra_id_0>" not in tokenizer.get_vocab():
            raise ModelError("model.kind=spans needs a tokenizer with sentinels, <extra_id_0> and on.")
        return SpanCodec(tokenizer, template)


def _whole_texts(codec: SourceTargetCodec, examples: Sequence[Example]) -> list[list[int]]:
    """Ids of prompt and response as one text, with the tokenizer's own special tokens."""
    texts = [codec.template.render(example.prompt, codec.tokenizer) + example.response for example in examples]
    return list(codec.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]) if texts else []
