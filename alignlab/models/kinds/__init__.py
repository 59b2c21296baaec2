"""Kinds of backbone: what goes in, what comes out, and how a batch runs through one. Light: torch comes with `implementation`.

A kind is found from the checkpoint's own config.json, or named by `model.kind`. Nothing outside this folder asks its name:
policies, stages and suites call its methods, and a run is checked against the capabilities that it provides.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from alignlab.errors import ModelError
from alignlab.records import Example, Group, Loss, Record, View

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from alignlab.models.backbone import Backbone
    from alignlab.models.layout import Layout
    from alignlab.models.policy import Policy
    from alignlab.models.probes import Abilities
    from alignlab.models.text import Codec, Template
    from alignlab.records import Batch, LabelSet


class Kind(Protocol):
    """How text, batches and weights of one kind of backbone fit together. It has no state."""

    auto: Any
    """The class of transformers that loads it."""

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Text to ids. `labels`: what the texts of the data can be told to be, None where that is not a closed set."""

    def choices(self, labels: LabelSet) -> View:
        """How a record is seen where the likeliest label is looked for; see `label_scores`."""

    def label_scores(self, policy: Policy, batch: Batch) -> Tensor:
        """A score of each label for each group of `choices`, G,C; the highest is the model's answer."""

    def nll(self, policy: Policy, batch: Batch) -> Loss:
        """The negative log-likelihood of what examples end in: nats per target token of the step, or per example."""

    def abilities(self, backbone: Backbone) -> Abilities:
        """What a backbone of this kind can do, tried on a few short rows. Raises ModelError for one that does not run."""

    def layout(self, backbone: Backbone, batch: Batch, shared: bool) -> Layout:
        """The rows of a forward pass, and where in them the target tokens are predicted. `shared`: all of them in
        one, where a prefix that all members of a group have is computed once."""

    def hidden(self, backbone: Backbone, layout: Layout) -> Tensor:
        """What `head` makes logits of, at each of K positions that predict a target token, K,D."""

    def head(self, backbone: Backbone, hidden_KD: Tensor) -> Tensor:
        """Logits, K,V."""

    def outputs(self, backbone: Backbone, layout: Layout) -> Tensor:
        """What a pass says, row after row: logits K,V, or class scores R,C."""

    def class_scores(self, backbone: Backbone, layout: Layout) -> Tensor:
        """Scores of the classes of each row before softmax, or one number, fp32, R,C; ModelError where there are none."""

    def states(self, backbone: Backbone, layout: Layout, layers: Sequence[int]) -> Tensor:
        """Outputs of blocks `layers` (1 = the first) at the target tokens themselves, L,K,D; it stops behind the highest."""


@dataclass(frozen=True)
class KindEntry:
    """A row of the table. `task_type`: PEFT's word. `provides`: capabilities that methods and suites may require. `requires`:
    those required of the data. `new_head`: a checkpoint may lack the head, which is then drawn from the seed."""

    place: str
    task_type: str
    provides: frozenset[str]
    requires: frozenset[str] = frozenset()
    new_head: bool = False

    def implementation(self) -> Kind:
        """The kind itself; imports torch."""
        module, _, name = self.place.rpartition(".")
        made: Kind = getattr(importlib.import_module(f"{__name__}.{module}"), name)()
        return made


KINDS: Mapping[str, KindEntry] = {
    "causal": KindEntry(
        "causal.Causal", "CAUSAL_LM", frozenset({"token likelihood", "generation", "hidden states", "text in front of prompts"})
    ),
    "seq2seq": KindEntry("seq2seq.Seq2seq", "SEQ_2_SEQ_LM", frozenset({"token likelihood", "generation"})),
    "classifier": KindEntry(
        "classifier.Classifier", "SEQ_CLS", frozenset({"class scores"}), frozenset({"label set"}), new_head=True
    ),
    "masked": KindEntry("corrupted.Masked", "FEATURE_EXTRACTION", frozenset(), frozenset({"corpus"})),
    "spans": KindEntry("corrupted.Spans", "SEQ_2_SEQ_LM", frozenset(), frozenset({"corpus"})),
}
"""masked and spans are what encoders and encoder-decoder models are pretrained by (method=pretrain)."""

_BY_ARCHITECTURE = (
    ("ForSequenceClassification", "classifier"),
    ("ForConditionalGeneration", "seq2seq"),
    ("ForCausalLM", "causal"),
    ("LMHeadModel", "causal"),
    ("ForMaskedLM", "classifier"),
    ("ForPreTraining", "classifier"),
    ("Model", "classifier"),
)
"""Ending of the name in a checkpoint's `architectures` -> its kind. A trunk without a head can be given a classifier's; the
first ending that fits decides."""


def kind_of(config: Mapping[str, Any]) -> str:
    """The name of a checkpoint's kind, from its config.json. Encoder-decoder models are seq2seq whatever they are called."""
    if config.get("is_encoder_decoder"):
        return "seq2seq"
    architecture = next(iter(config.get("architectures") or ()), "ForCausalLM")
    return next((kind for ending, kind in _BY_ARCHITECTURE if str(architecture).endswith(ending)), "causal")


def task_type_of(model: Any) -> str:
    """PEFT's word for a model of transformers."""
    return _entry_of(model).task_type


def new_head(model: Any) -> list[str]:
    """Names of the parameters of a head that no pretraining has made: those of a classifier outside its trunk."""
    trunk = f"{model.base_model_prefix}."
    return [name for name, _ in model.named_parameters() if not name.startswith(trunk)] if _entry_of(model).new_head else []


def _entry_of(model: Any) -> KindEntry:
    described = {"architectures": [type(model).__name__], "is_encoder_decoder": model.config.is_encoder_decoder}
    return KINDS[kind_of(described)]


def token_nll(policy: Policy, batch: Batch) -> Loss:
    """Mean negative log-likelihood of the target tokens of the step, in nats per token."""
    total = policy.logprobs(batch).total_GM.sum()
    return Loss(-total / batch.step_tokens, {})


def every_label(labels: LabelSet) -> View:
    """A group of a record's text with each label as its response."""

    def view(record: Record) -> tuple[Group, ...]:
        return (Group(record.row, tuple(Example(record.prompt, name, second=record.second) for name in labels.names)),)

    return view


def label_likelihoods(policy: Policy, batch: Batch) -> Tensor:
    """log p(label | text) in nats, summed over the label's tokens, G,C."""
    return policy.logprobs(batch).total_GM


def no_class_scores(backbone: Backbone, layout: Layout) -> Tensor:
    """Raises ModelError: of a kind that predicts tokens."""
    del layout
    raise ModelError(f"model={backbone.name} predicts tokens and has no class scores; take model.kind=classifier.")
