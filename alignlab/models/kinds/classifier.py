"""Classifiers: a text, or a pair of texts, to scores of classes, or to one number.

An example's ids are its source alone, and its target is the number of a class, or a number. Shapes: G groups, M members (one),
R rows, T time, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignlab.errors import DataError, ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.layout import Layout
from alignlab.models.policy import Policy
from alignlab.models.probes import Abilities, of_rows
from alignlab.models.text import Codec, Template
from alignlab.records import Batch, Encoded, Example, Group, LabelSet, Loss, Record, View


class LabelCodec(Codec):
    """Sources are tokenised with the special tokens of the tokenizer; a response is the name of a class, or a number."""

    predicts_prompt = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet) -> None:
        # Not a language model: nothing has to end, and there may be no EOS.
        self.tokenizer, self.template, self.labels = tokenizer, template, labels
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
        if not examples:
            return []
        for example, row in zip(examples, rows, strict=True):
            if not example.prompt.strip() or (example.second is not None and not example.second.strip()):
                raise DataError(f"{row}: the text is empty; remove the row or give it a text.")
        seconds = [example.second for example in examples]
        if any(second is None for second in seconds) != all(second is None for second in seconds):
            row = rows[seconds.index(None)]
            raise DataError(f"{row}: has one text, and others of this split have two; give every row as many.")
        rendered = [self.template.render(example.prompt, self.tokenizer) for example in examples]
        pairs = None if seconds[0] is None else [str(second) for second in seconds]
        encoded = self.tokenizer(rendered, pairs, return_attention_mask=False, verbose=False)
        kinds = encoded.get("token_type_ids") or [()] * len(examples)
        return [
            Encoded(tuple(ids), len(ids), head=1, target=self.target(example.response, row), types=tuple(types))
            for ids, types, example, row in zip(encoded["input_ids"], kinds, examples, rows, strict=True)
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
            raise DataError(f"{row}: {response!r} is no number, and this task asks for one.") from error


class Classifier:
    """Cross-entropy over classes; without classes, the squared error of one number."""

    auto = AutoModelForSequenceClassification

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Raises ModelError where the data has no labels."""
        if labels is None:
            raise ModelError("a classifier needs data with labels; take data=toy_classes or text_classification.")
        return LabelCodec(tokenizer, template, labels)

    def choices(self, labels: LabelSet) -> View:
        """The text with its own label: one pass scores all of them."""
        del labels
        return _text_with_its_label

    def label_scores(self, policy: Policy, batch: Batch) -> Tensor:
        """As the head gives them, G,C."""
        return policy.class_scores(batch)[:, 0]

    def nll(self, policy: Policy, batch: Batch) -> Loss:
        """Mean cross-entropy of the step's examples in nats, or their mean squared error; with the accuracy of classes."""
        scores_RC = policy.class_scores(batch).flatten(0, 1)
        assert batch.target_GM is not None
        target_R = batch.target_GM.flatten()
        share = 1 / (batch.step_groups * batch.ids_GMT.shape[1])
        if scores_RC.shape[1] == 1:
            return Loss(F.mse_loss(scores_RC[:, 0], target_R.float(), reduction="sum") * share, {})
        correct = (scores_RC.argmax(-1) == target_R).float().sum()
        value = F.cross_entropy(scores_RC, target_R.long(), reduction="sum")
        return Loss(value * share, {"accuracy": correct.detach() * share})

    def abilities(self, backbone: Backbone) -> Abilities:
        """What a few short rows show."""
        return of_rows(backbone, self, "every token of a text is read at once")

    def layout(self, backbone: Backbone, batch: Batch, shared: bool) -> Layout:
        """A row per text, padded on the right and masked; no tokens are predicted."""
        del shared
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

    def head(self, backbone: Backbone, hidden_KD: Tensor) -> Tensor:
        """Raises ModelError, as `hidden`."""
        return self.hidden(backbone, hidden_KD)  # type: ignore[arg-type]

    def states(self, backbone: Backbone, layout: Layout, layers: Sequence[int]) -> Tensor:
        """Raises ModelError: there are no response tokens whose states could be read."""
        raise ModelError(f"model={backbone.name} is a classifier, which has no response tokens to read hidden states of.")


def _text_with_its_label(record: Record) -> tuple[Group, ...]:
    return (Group(record.row, (Example(record.prompt, record.responses[0].text, second=record.second),)),)
