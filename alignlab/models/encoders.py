"""Kinds of backbone that read a whole text at once: encoder-decoder models, classifiers, and how both are pretrained.

* Encoder-decoder: the prompt is the encoder's text, the response the decoder's. An example is one row of ids, source then
  target, `start` being where the target begins, so that batching, references and accounts treat it like any other.
* Masked tokens, spans: a text with gaps is the source, and the tokens that fill them are the target. Which tokens are left out
  depends on the row alone.
* Classifier: an example's ids are its source alone, a text or a pair of texts; its target is a class's number, or a number.
* Reward model: a classifier with one output, whose source is a prompt with its response.

Shapes: G groups, M members, R rows, T time, S source time, U target time, K target tokens, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
)

from alignlab.errors import DataError, ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.kinds import Kind
from alignlab.models.packing import Layout
from alignlab.models.text import Codec, Template, Text, adds_bos, empty, special
from alignlab.records import Batch, Encoded, Example, Group, LabelSet, Loss, Record, View

SHARE = 0.15
"""Of the tokens that are left out (BERT, arXiv 1810.04805; T5, arXiv 1910.10683)."""
SPAN_TOKENS = 3
"""Mean length of a span that is left out (T5, section 3.3.4)."""


class SourceTargetCodec(Codec):
    """Source and target are tokenised apart, each with the special tokens that the tokenizer itself puts there."""

    predicts_prompt = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        super().__init__(tokenizer, template)
        self.ends, self.stop, self.end_tokens = (self.eos,), (), 1  # whatever a chat template writes, it writes in the source

    def prompts(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of each source."""
        return [tuple(ids) for ids in self._sources([self.written(prompt) for prompt in prompts])]

    def answer(self, prompt: str, text: str) -> str:
        """The text itself: a source ends by itself, and nothing of it is left for the target."""
        del prompt
        return text

    def examples(self, examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
        """Source ids, then target ids with exactly one EOS. Raises UnusableRowError for an empty target and for special tokens
        written out in a text, DataError for a text in front of the prompt."""
        for example, row in zip(examples, rows, strict=True):
            if example.prefix:
                raise DataError(f"{row}: an encoder-decoder model takes no text in front of its source; use a causal model.")
            if not example.response.strip():
                raise empty(row, "response")
        if not examples:
            return []
        rendered = [self.written(example.prompt, row) for example, row in zip(examples, rows, strict=True)]
        sources = self._sources(rendered, [example.second for example in examples])
        targets = self.tokenizer(
            text_target=[self._target(example, row) for example, row in zip(examples, rows, strict=True)],
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        return [
            Encoded((*self._whole(source, row), *self._ended(target, row)), len(source), head=self._kept_in_front(source))
            for source, target, row in zip(sources, targets, rows, strict=True)
        ]

    def _target(self, example: Example, row: str) -> str:
        return self.chat.answer(example.prompt, example.response, row) if self.chat else example.response

    def _sources(self, texts: list[str], seconds: Sequence[str | None] = ()) -> list[list[int]]:
        if not texts:
            return []
        pairs = [f"{text} {second}" if second else text for text, second in zip(texts, seconds or [None] * len(texts))]
        return list(self.tokenizer(pairs, return_attention_mask=False, verbose=False)["input_ids"])

    def _whole(self, source: list[int], row: str) -> list[int]:
        if self.chat is None and self.eos in source[:-1]:
            raise special(row, "the source holds an EOS token as text; remove it, the tokenizer adds its own.")
        return source

    def _ended(self, target: list[int], row: str) -> list[int]:
        ended = target if target and target[-1] == self.eos else [*target, self.eos]
        if self.eos in ended[:-1]:
            raise special(row, "the response holds an EOS token as text; remove it, alignlab adds its own.")
        return ended

    def _kept_in_front(self, source: Sequence[int]) -> int:
        return int(bool(source) and source[0] == self.tokenizer.bos_token_id)


class Seq2seq(Kind):
    """Target tokens are the decoder's."""

    auto = AutoModelForSeq2SeqLM
    apart = "each row has a source of its own"

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Class names are texts like any other, so `labels` change nothing."""
        del labels
        return SourceTargetCodec(tokenizer, template)

    def layout(self, backbone: Backbone, batch: Batch, packing: str) -> Layout:
        """A row per member: the source padded on the right in `ids_RT`, and what the decoder reads in `decoder_RU`."""
        del packing
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

    def states(self, backbone: Backbone, layout: Layout, layers: Sequence[int]) -> Tensor:
        """Raises ModelError: which of its two stacks is meant is not defined."""
        raise ModelError(f"only causal models give hidden states by layer, and model={backbone.name} has two stacks.")


def _first_token(backbone: Backbone) -> int:
    """What a decoder begins with. Raises ModelError where the checkpoint does not say."""
    first = backbone.model.generation_config.decoder_start_token_id  # type: ignore[union-attr]
    first = backbone.model.config.decoder_start_token_id if first is None else first
    if first is None:
        raise ModelError(f"model={backbone.name} names no decoder_start_token_id; set it in the checkpoint's config.json.")
    return int(first)


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


class Masked(Kind):
    """A masked language model (arXiv 1810.04805): each mask predicts what it hides."""

    auto = AutoModelForMaskedLM
    apart = "every token of a row is read at once"

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Raises ModelError for a tokenizer without a mask token."""
        del labels
        if tokenizer.mask_token_id is None:
            raise ModelError("model.kind=masked needs a tokenizer with a mask token; set mask_token in its config.")
        return MaskedCodec(tokenizer, template)

    def layout(self, backbone: Backbone, batch: Batch, packing: str) -> Layout:
        """A row per text; the target tokens stand behind it in the batch, in the order of its masks."""
        del packing
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

    def states(self, backbone: Backbone, layout: Layout, layers: Sequence[int]) -> Tensor:
        """Raises ModelError: hidden states of a masked model are not defined."""
        raise ModelError(f"model={backbone.name} is of kind masked, which is for pretraining and has no hidden states to read.")


class Spans(Seq2seq):
    """T5's span corruption (arXiv 1910.10683): the decoder says what the sentinels hide."""

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Raises ModelError for a tokenizer without sentinels."""
        del labels
        if "<extra_id_0>" not in tokenizer.get_vocab():
            raise ModelError("model.kind=spans needs a tokenizer with sentinels, such as <extra_id_0>.")
        return SpanCodec(tokenizer, template)


def _whole_texts(codec: SourceTargetCodec, examples: Sequence[Example]) -> list[list[int]]:
    """Ids of prompt and response as one text, with the tokenizer's own special tokens."""
    texts = [codec.written(example.prompt) + example.response for example in examples]
    return list(codec.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]) if texts else []


class LabelCodec(Codec):
    """Sources are tokenised with the special tokens of the tokenizer; a response is the name of a class, or a number."""

    predicts_prompt = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet) -> None:
        # Not a language model: nothing has to end, and there may be no EOS.
        self.tokenizer, self.template, self.chat = tokenizer, template, template.chat_of(tokenizer)
        self.labels: LabelSet = labels
        self.head = ()
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no token to pad with; set pad_token in its config.")
        self.pad = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self.eos = self.pad
        self._number = {name: number for number, name in enumerate(labels.names)}

    def prompts(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of each text."""
        return [tuple(ids) for ids in self.tokenizer(list(prompts), verbose=False)["input_ids"]] if prompts else []

    def examples(self, examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
        """Ids of each text with its target. Raises DataError, with the row, for an empty text and a class that is not known."""
        sources = self._encoded_texts([(example.prompt, example.second) for example in examples], rows)
        return [
            replace(source, target=self.target(example.response, row))
            for source, example, row in zip(sources, examples, rows, strict=True)
        ]

    def texts(self, texts: Sequence[Text]) -> list[Encoded]:
        """Ids of each text, or pair of texts, without a target. Raises DataError, with its place, for an empty text, for what
        is neither, and where some are single and others are pairs."""
        if isinstance(texts, str):
            raise DataError(f"{texts[:40]!r} is a single text; give a list of texts.")
        for place, text in enumerate(texts):
            if not isinstance(text, str) and not (len(text) == 2 and all(isinstance(each, str) for each in text)):
                raise DataError(f"text {place}: {text!r} is neither a text nor a pair of texts.")
        pairs = [(text, None) if isinstance(text, str) else text for text in texts]
        return self._encoded_texts(pairs, [f"text {place}" for place in range(len(texts))])

    def _encoded_texts(self, texts: Sequence[tuple[str, str | None]], rows: Sequence[str]) -> list[Encoded]:
        if not texts:
            return []
        for (first, second), row in zip(texts, rows, strict=True):
            if not first.strip() or (second is not None and not second.strip()):
                raise empty(row, "text")
        seconds = [second for _, second in texts]
        if any(second is None for second in seconds) != all(second is None for second in seconds):
            row = rows[seconds.index(None)]
            raise DataError(f"{row}: has one text where others have two; give each the same number of texts.")
        rendered = [self.written(first, row) for (first, _), row in zip(texts, rows, strict=True)]
        pairs = None if seconds[0] is None else [str(second) for second in seconds]
        encoded = self.tokenizer(rendered, pairs, return_attention_mask=False, verbose=False)
        kinds = encoded.get("token_type_ids") or [()] * len(texts)
        return [
            Encoded(tuple(ids), len(ids), head=1, types=tuple(types))
            for ids, types in zip(encoded["input_ids"], kinds, strict=True)
        ]

    def target(self, response: str, row: str) -> float:
        """The number of a class, or the number that a response is."""
        if self.labels.names:
            if response not in self._number:
                raise DataError(f"{row}: label {response!r} is none of the classes {', '.join(self.labels.names)}.")
            return self._number[response]
        try:
            return float(response)
        except ValueError as error:
            raise DataError(f"{row}: {response!r} is not a number, and this task needs one.") from error


class Classifier(Kind):
    """Cross-entropy over classes; without classes, the squared error of one number."""

    auto = AutoModelForSequenceClassification
    scores_classes = True
    apart = "every token of a text is read at once"

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Raises ModelError where the data has no labels."""
        if labels is None:
            raise ModelError("a classifier needs data with labels; take data=toy_classes or text_classification.")
        return LabelCodec(tokenizer, template, labels)

    def choices(self, labels: LabelSet) -> View:
        """The text with its own label: one pass scores all of them."""
        del labels
        return _text_with_its_label

    def class_loss(self, scores_RC: Tensor, batch: Batch) -> Loss:
        """Mean cross-entropy of the step's examples in nats, or their mean squared error; with the accuracy of classes."""
        assert batch.target_GM is not None
        target_R = batch.target_GM.flatten()
        weight = 1 / (batch.step_groups * batch.ids_GMT.shape[1])
        if scores_RC.shape[1] == 1:
            return Loss(F.mse_loss(scores_RC[:, 0], target_R.float(), reduction="sum") * weight, {})
        correct = (scores_RC.argmax(-1) == target_R).float().sum()
        value = F.cross_entropy(scores_RC, target_R.long(), reduction="sum")
        return Loss(value * weight, {"accuracy": correct.detach() * weight})

    def layout(self, backbone: Backbone, batch: Batch, packing: str) -> Layout:
        """A row per text, padded on the right and masked; no tokens are predicted."""
        del packing
        groups, members, time = batch.ids_GMT.shape
        device = batch.ids_GMT.device
        none_K = torch.zeros(0, dtype=torch.long, device=device)
        return Layout(
            ids_RT=batch.ids_GMT.reshape(-1, time),
            positions_RT=None,
            mask=(torch.arange(time, device=device) < batch.length_GM.reshape(-1, 1)).long(),
            row_K=none_K,
            time_K=none_K,
            state_K=none_K,
            target_K=none_K,
            member_K=none_K,
            group_R=torch.arange(groups, device=device).repeat_interleave(members),
            segments=None,
            types_RT=None if batch.types_GMT is None else batch.types_GMT.reshape(-1, time),
        )

    def class_scores(self, backbone: Backbone, layout: Layout) -> Tensor:
        """Logits of the classes, or the number itself, fp32, R,C."""
        more = {} if layout.types_RT is None else {"token_type_ids": layout.types_RT}
        logits_RC: Tensor = backbone.model(input_ids=layout.ids_RT, attention_mask=layout.mask, **more).logits
        return logits_RC.float()

    def outputs(self, backbone: Backbone, layout: Layout) -> Tensor:
        """Scores of the classes, R,C."""
        return self.class_scores(backbone, layout)

    def hidden(self, backbone: Backbone, layout: Layout) -> Tensor:
        """Raises ModelError: no tokens are predicted."""
        raise ModelError(f"model={backbone.name} is a classifier, which gives texts no likelihood; take another kind.")

    def states(self, backbone: Backbone, layout: Layout, layers: Sequence[int]) -> Tensor:
        """Raises ModelError: there are no response tokens whose states could be read."""
        raise ModelError(f"model={backbone.name} is a classifier, which has no response tokens to read hidden states of.")


class RewardCodec(LabelCodec):
    """A prompt with its response as one text, which ends with a special token: a turn's end, the tokenizer's own, or EOS."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        super().__init__(tokenizer, template, LabelSet(()))
        by_itself = self.chat.bos if self.chat else adds_bos(tokenizer)
        wanted = by_itself if template.bos is None else template.bos
        self.head = (int(tokenizer.bos_token_id),) if wanted and tokenizer.bos_token_id is not None else ()
        self.eos = self.pad if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)

    def examples(self, examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
        """Ids of each prompt with its response. Raises DataError, with the row, for an empty response."""
        for example, row in zip(examples, rows, strict=True):
            if not example.response.strip():
                raise empty(row, "response")
        whole = [self._answered(example, row) for example, row in zip(examples, rows, strict=True)]
        encoded = self.tokenizer(whole, return_attention_mask=False, verbose=False)["input_ids"] if whole else []
        return [Encoded(ids, len(ids), head=1) for ids in map(self._ended, map(tuple, encoded))]

    def _answered(self, example: Example, row: str) -> str:
        said = self.chat.response(example.prompt, example.response, row) if self.chat else example.response
        return self.written(example.prompt, row) + said

    def _ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        ids = ids if ids[: len(self.head)] == self.head else (*self.head, *ids)
        return ids if ids[-1] in self.tokenizer.all_special_ids else (*ids, self.eos)


class RewardModel(Classifier):
    """One number for a prompt with its response."""

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """The data's labels, if it has any, change nothing."""
        del labels
        return RewardCodec(tokenizer, template)


def _text_with_its_label(record: Record) -> tuple[Group, ...]:
    return (Group(record.row, (Example(record.prompt, record.responses[0].text, second=record.second),)),)
